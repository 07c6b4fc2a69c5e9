import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import AdaptiveKLCoefficient, gae, kl_shaped_rewards, ppo_clip_fraction, ppo_loss

NAN = math.nan


def exactly(actual, expected):
    assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-9)


def case():
    """ε = 0.2. Six tokens, the last masked:

    ρ     A    −Aρ    −A clip ρ   larger    gradient −Aρ where unclipped
    1.5   2    −3     −2.4        −2.4      0     clipped
    1.5  −2     3      2.4         3        3
    0.5   2    −1     −1.6        −1       −1
    0.5  −2     1      1.6         1.6      0     clipped
    1.1   1    −1.1   −1.1        −1.1     −1.1
    """
    ratios = torch.tensor([[1.5, 1.5, 0.5], [0.5, 1.1, NAN]], dtype=torch.float64)
    rollout = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.1, NAN]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, -2.0, 2.0], [-2.0, 1.0, NAN]], dtype=torch.float64)
    policy = (rollout + ratios.log()).requires_grad_()
    return policy, rollout, advantages, torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_loss_and_gradient_by_hand():
    policy, rollout, advantages, mask = case()
    loss = ppo_loss(policy, rollout, advantages, mask, clip_range=0.2)
    exactly(loss, (-2.4 + 3 - 1 + 1.6 - 1.1) / 5)
    loss.backward()
    exactly(policy.grad, [[0.0, 3 / 5, -1 / 5], [0.0, -1.1 / 5, 0.0]])


def test_clip_fraction_counts_tokens_that_lost_their_gradient():
    policy, rollout, advantages, mask = case()
    fraction = ppo_clip_fraction(policy, rollout, advantages, mask, clip_range=0.2)
    assert fraction.item() == pytest.approx(2 / 5)
    assert not fraction.requires_grad
    assert ppo_clip_fraction(policy, rollout, advantages, torch.zeros_like(mask), clip_range=0.2).item() == 0.0


def test_shaped_rewards_by_hand():
    # d = 1, −2, 0.5 and 3; β = 0.1; scores 5 and −1, the first at its second token
    rollout = torch.tensor([[-1.0, -3.0, NAN], [-1.0, -1.5, 1.0]], dtype=torch.float64)
    reference = torch.tensor([[-2.0, -1.0, 9.0], [-1.5, -1.5, -2.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rewards = kl_shaped_rewards(torch.tensor([5.0, -1.0], dtype=torch.float64), rollout, reference, mask, kl_coef=0.1)
    exactly(rewards, [[-0.1, 0.2 + 5.0, 0.0], [-0.05, 0.0, -0.3 - 1.0]])
    # the whole response's return is score − β · (k1 summed over it)
    _, returns = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)
    exactly(returns[:, 0], [5.0 - 0.1 * (1 - 2), -1.0 - 0.1 * (0.5 + 0 + 3)])


def test_shaped_rewards_without_penalty_or_tokens():
    x = torch.ones(2, 2)
    mask = torch.tensor([[1, 1], [0, 0]])
    assert kl_shaped_rewards(torch.tensor([3.0, NAN]), x, 2 * x, mask, kl_coef=0.0).tolist() == [[0.0, 3.0], [0.0, 0.0]]


def test_shaped_rewards_check_their_arguments():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="kl_coef"):
        kl_shaped_rewards(torch.zeros(2), x, x, x, kl_coef=-0.1)
    with pytest.raises(ValueError, match="reference_logprobs"):
        kl_shaped_rewards(torch.zeros(2), x, x[:, :2], x, kl_coef=0.1)
    with pytest.raises(ValueError, match="scores"):
        kl_shaped_rewards(torch.zeros(3), x, x, x, kl_coef=0.1)
    with pytest.raises(ValueError, match="clip_range"):
        ppo_clip_fraction(x, x, x, x, clip_range=0.0)


def test_adaptive_coefficient_by_hand():
    beta = AdaptiveKLCoefficient(0.05, target=6.0, horizon=1000)
    beta.update(6.6, 100)  # error 0.1, factor 1.01
    assert beta.value == pytest.approx(0.05 * 1.01, abs=1e-12)
    beta.update(60.0, 100)  # error 9, clipped to 0.2: factor 1.02
    assert beta.value == pytest.approx(0.05 * 1.01 * 1.02, abs=1e-12)
    beta.update(-3.0, 50)  # error −1.5, clipped to −0.2: factor 0.99
    assert beta.value == pytest.approx(0.05 * 1.01 * 1.02 * 0.99, abs=1e-12)
    before = beta.value
    beta.update(6.0, 100)  # on target
    assert beta.value == before


def test_adaptive_coefficient_resumes_where_it_was():
    beta = AdaptiveKLCoefficient(0.05, target=6.0, horizon=10_000)
    beta.update(9.0, 128)
    resumed = AdaptiveKLCoefficient(1.0, target=6.0, horizon=10_000)
    resumed.load_state_dict(beta.state_dict())
    for controller in (beta, resumed):
        controller.update(2.0, 128)
    assert resumed.value == beta.value
    with pytest.raises(ValueError, match="value"):
        resumed.load_state_dict({"value": NAN})


def test_adaptive_coefficient_refuses_nonsense():
    for wrong in ({"value": 0.0}, {"target": 0.0}, {"horizon": -1.0}, {"value": NAN}):
        arguments = {"value": 0.05, "target": 6.0, "horizon": 1000.0} | wrong
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AdaptiveKLCoefficient(arguments["value"], target=arguments["target"], horizon=arguments["horizon"])
    beta = AdaptiveKLCoefficient(0.05, target=6.0, horizon=100)
    with pytest.raises(ValueError, match="kl must be finite"):
        beta.update(NAN, 10)
    with pytest.raises(ValueError, match="responses"):
        beta.update(6.0, -1)
    with pytest.raises(ValueError, match="horizon"):
        beta.update(0.0, 500)
    assert beta.value == 0.05
