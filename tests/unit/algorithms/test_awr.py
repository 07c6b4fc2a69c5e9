import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import awr_loss

NAN = math.nan


def test_loss_and_gradient_by_hand():
    # λ = 2; A = 2 log 3, 0, −2 log 4, so the weights are 3, 1, 1/4; the last token is masked
    policy = torch.tensor([[-1.0, -2.0], [-4.0, NAN]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[2 * math.log(3), 0.0], [-2 * math.log(4), NAN]], dtype=torch.float64)
    loss = awr_loss(policy, advantages, torch.tensor([[1, 1], [1, 0]]), kl_lambda=2.0)
    # (3·1 + 1·2 + 1/4·4) / 3
    assert_close(loss, torch.tensor(2.0, dtype=torch.float64), rtol=0, atol=1e-9)
    loss.backward()
    expected = torch.tensor([[-1.0, -1 / 3], [-1 / 12, 0.0]], dtype=torch.float64)
    assert_close(policy.grad, expected, rtol=0, atol=1e-9)


def test_weight_is_not_clipped_and_a_masked_overflow_does_not_show():
    policy = torch.full((1, 2), -1.0)
    assert awr_loss(policy, torch.tensor([[50.0, 0.0]]), torch.tensor([[1, 0]]), kl_lambda=1.0).item() == pytest.approx(
        math.exp(50.0), rel=1e-5
    )
    assert awr_loss(policy, torch.tensor([[1e6, 0.0]]), torch.tensor([[1, 0]]), kl_lambda=1.0).item() == math.inf
    assert awr_loss(policy, torch.tensor([[1e6, 0.0]]), torch.tensor([[0, 1]]), kl_lambda=1.0).item() == 1.0
