import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import apa_loss, apa_target_residual, bound_advantages

NAN = math.nan


def case():
    """λ = 1/2, so A/λ = 2A. Residuals: −1 + 2 − 2 = −1, −2 + 1.5 + 1 = 0.5, −0.5 + 3 − 0.5 = 2; the last is masked."""
    policy = torch.tensor([[-1.0, -2.0], [-0.5, NAN]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-2.0, -1.5], [-3.0, NAN]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -0.5], [0.25, NAN]], dtype=torch.float64)
    return policy, reference, advantages, torch.tensor([[1, 1], [1, 0]])


def test_loss_and_gradient_by_hand():
    policy, reference, advantages, mask = case()
    loss = apa_loss(policy, reference, advantages, mask, kl_lambda=0.5)
    # (1 + 0.25 + 4) / 3
    assert_close(loss, torch.tensor(1.75, dtype=torch.float64), rtol=0, atol=1e-9)
    loss.backward()
    # 2/3 of each residual
    expected = torch.tensor([[-2 / 3, 1 / 3], [4 / 3, 0.0]], dtype=torch.float64)
    assert_close(policy.grad, expected, rtol=0, atol=1e-9)


def test_a_tabular_policy_reaches_the_tilted_reference():
    # Minimising over a softmax at one state, every action seen once, with advantages whose normaliser is exactly 1:
    # Σ π_ref exp(A/λ) = 1, so the minimiser is π_ref exp(A/λ) itself.
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    target = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    kl_lambda = 0.7
    advantages = kl_lambda * (target / reference).log()
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        loss = apa_loss(
            logits.log_softmax(0)[None], reference.log()[None], advantages[None], torch.ones(1, 3), kl_lambda=kl_lambda
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
    assert_close(logits.softmax(0).detach(), target, rtol=0, atol=1e-6)  # gradient descent, stopped


def test_target_residual_is_a_sum_and_a_count():
    policy, reference, advantages, mask = case()
    squares, count = apa_target_residual(policy, reference, advantages, mask, kl_lambda=0.5)
    assert squares.item() == 5.25
    assert count.item() == 3
    assert not squares.requires_grad
    first = apa_target_residual(policy[:1], reference[:1], advantages[:1], mask[:1], kl_lambda=0.5)
    second = apa_target_residual(policy[1:], reference[1:], advantages[1:], mask[1:], kl_lambda=0.5)
    assert (first[0] + second[0]).item() == 5.25
    assert (first[1] + second[1]).item() == 3


def test_a_bound_keeps_a_groups_proportions():
    # One right answer among eight: clipping to ± 3 would have left 3 against −3 seven times. Another group is within.
    advantages = torch.cat([torch.tensor([7.0] + [-1.0] * 7), torch.tensor([1.0, -1.0] * 4)])[:, None]
    bounded = bound_advantages(advantages, 3.0, 8)
    assert_close(bounded[:8, 0], torch.tensor([3.0] + [-3 / 7] * 7))
    assert torch.equal(bounded[8:], advantages[8:])
    assert torch.equal(bound_advantages(torch.zeros(4, 2), 3.0, 2), torch.zeros(4, 2))
    assert bound_advantages(advantages, 3.0, None)[:, 0].tolist() == [3.0] + [-1.0] * 7 + [1.0, -1.0] * 4  # a critic's
    with pytest.raises(ValueError, match="groups of 3"):
        bound_advantages(advantages, 3.0, 3)


def test_huber_by_hand():
    # Residuals −1, 0.5 and 2 with δ = 0.75: 2 · 0.75 · 1 − 0.5625 = 0.9375, then 0.25, then 3 − 0.5625 = 2.4375.
    policy, reference, advantages, mask = case()
    loss = apa_loss(policy, reference, advantages, mask, kl_lambda=0.5, huber_delta=0.75)
    assert loss.item() == pytest.approx((0.9375 + 0.25 + 2.4375) / 3, abs=1e-12)
    loss.backward()  # 2/3 of −0.75, 0.5 and 0.75
    expected = torch.tensor([[-0.5, 1 / 3], [0.5, 0.0]], dtype=torch.float64)
    assert_close(policy.grad, expected, rtol=0, atol=1e-9)
    # It is torch's Huber loss, doubled.
    residual = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    other = torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), delta=0.75)
    assert loss.item() == pytest.approx(2 * other.item(), abs=1e-12)


def test_a_huber_delta_that_nothing_reaches_changes_no_bit():
    policy, reference, advantages, mask = case()
    plain = apa_loss(policy, reference, advantages, mask, kl_lambda=0.5)
    assert apa_loss(policy, reference, advantages, mask, kl_lambda=0.5, huber_delta=2.0) == plain
