import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import gae, terminal_rewards

NAN, INF = math.nan, math.inf


def exactly(actual, expected):
    assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-9)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 0])[:, None]
    mask[0, 2] = False  # a hole is skipped
    return rewards, values, mask


def plain_gae(rewards, values, mask, gamma, gae_lambda):
    """Σ_l (γλ)^l δ_{t+l} over each row's counted tokens, straight from the definition."""
    advantages = [[0.0] * len(row) for row in rewards]
    for b, row in enumerate(mask):
        counted = [t for t, m in enumerate(row) if m]
        r, v = [rewards[b][t] for t in counted], [values[b][t] for t in counted] + [0.0]
        delta = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(r))]
        for i, t in enumerate(counted):
            advantages[b][t] = sum((gamma * gae_lambda) ** (j - i) * delta[j] for j in range(i, len(r)))
    return advantages


def test_by_hand():
    # V = 1, 2, 4; r = 0, 0, 10; γ = 0.5, λ = 0.5, so γλ = 0.25
    # δ₂ = 10 − 4 = 6, δ₁ = 0.5·4 − 2 = 0, δ₀ = 0.5·2 − 1 = 0; A = 0.375, 1.5, 6; R = 1.375, 3.5, 10
    rewards = torch.tensor([[0.0, 0.0, 10.0, NAN]], dtype=torch.float64)
    values = torch.tensor([[1.0, 2.0, 4.0, 100.0]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, torch.tensor([[1, 1, 1, 0]]), gamma=0.5, gae_lambda=0.5)
    exactly(advantages, [[0.375, 1.5, 6.0, 0.0]])
    exactly(returns, [[1.375, 3.5, 10.0, 0.0]])


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (0.8, 1.0), (0.0, 0.5)])
def test_matches_the_definition(gamma, gae_lambda):
    rewards, values, mask = batch()
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    expected = torch.tensor(
        plain_gae(rewards.tolist(), values.tolist(), mask.tolist(), gamma, gae_lambda), dtype=torch.float64
    )
    exactly(advantages, expected)
    exactly(returns, torch.where(mask, expected + values, 0.0))


@pytest.mark.parametrize("poison", [NAN, INF, -INF, 1e6])
def test_masked_positions_contribute_nothing(poison):
    rewards, values, mask = batch()
    clean = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.7)
    dirty = gae(
        torch.where(mask, rewards, poison), torch.where(mask, values, poison), mask.float(), gamma=0.9, gae_lambda=0.7
    )
    for a, b in zip(dirty, clean, strict=True):
        assert_close(a, b, rtol=0, atol=0)
        assert (a[~mask] == 0).all()


def test_targets_carry_no_gradient():
    rewards, values, mask = batch()
    for target in gae(rewards, values.requires_grad_(), mask, gamma=1.0, gae_lambda=0.95):
        assert not target.requires_grad


def test_scores_arrive_at_the_last_counted_token():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
    scores = torch.tensor([1.0, -2.0, 3.0, NAN, 5.0])
    expected = [[0.0, 0.0, 1.0], [0.0, -2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 5.0, 0.0]]
    for kind in (mask, mask.bool(), mask.double()):
        assert terminal_rewards(scores, kind).tolist() == expected


def test_arguments_are_checked():
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="values"):
        gae(a, b, a, gamma=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match="response_mask"):
        gae(a, a, b, gamma=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match="B, T"):
        gae(a[0], a[0], a[0], gamma=1.0, gae_lambda=1.0)
    for wrong in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="gamma"):
            gae(a, a, a, gamma=wrong, gae_lambda=1.0)
        with pytest.raises(ValueError, match="gae_lambda"):
            gae(a, a, a, gamma=1.0, gae_lambda=wrong)
    with pytest.raises(ValueError, match="scores"):
        terminal_rewards(torch.zeros(3), a)
    with pytest.raises(ValueError, match="scores"):
        terminal_rewards(torch.zeros(2, 1), a)
