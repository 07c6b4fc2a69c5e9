import math
import statistics

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import explained_variance, value_loss

NAN = math.nan


def exactly(actual, expected):
    assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-9)


def test_loss_and_gradient_by_hand():
    # errors 1, −2, 3 and a masked one: ½ (1 + 4 + 9) / 3
    values = torch.tensor([[2.0, 0.0], [5.0, NAN]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[1.0, 2.0], [2.0, NAN]], dtype=torch.float64)
    loss = value_loss(values, returns, torch.tensor([[1, 1], [1, 0]]))
    exactly(loss, 7 / 3)
    loss.backward()
    exactly(values.grad, [[1 / 3, -2 / 3], [1.0, 0.0]])


def test_clipped_loss_and_gradient_by_hand():
    # c = 0.5, rollout value 1 throughout
    #  V     R    V'    (V−R)²  (V'−R)²  larger   gradient
    #  3     4    1.5    1       6.25     6.25    0      moved too far towards R: clipped
    #  3     0    1.5    9       2.25     9       3      moved away from R: not clipped
    #  1.25  0    1.25   1.5625  1.5625   1.5625  1.25   within the range
    values = torch.tensor([[3.0, 3.0, 1.25, NAN]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[4.0, 0.0, 0.0, NAN]], dtype=torch.float64)
    rollout = torch.tensor([[1.0, 1.0, 1.0, NAN]], dtype=torch.float64)
    loss = value_loss(values, returns, torch.tensor([[1, 1, 1, 0]]), rollout_values=rollout, clip_range=0.5)
    exactly(loss, 0.5 * (6.25 + 9 + 1.5625) / 3)
    loss.backward()
    exactly(values.grad, [[0.0, 1.0, 1.25 / 3, 0.0]])


def test_clipping_needs_both_of_its_arguments():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="belong together"):
        value_loss(x, x, x, rollout_values=x)
    with pytest.raises(ValueError, match="belong together"):
        value_loss(x, x, x, clip_range=0.2)


def test_explained_variance_by_hand():
    returns, values = [1.0, 2.0, 4.0, 9.0], [0.5, 2.5, 3.0, 7.0]
    errors = [r - v for r, v in zip(returns, values, strict=True)]
    expected = 1 - statistics.variance(errors) / statistics.variance(returns)
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    as_tensor = [torch.tensor([[*row, NAN]], dtype=torch.float64) for row in (values, returns)]
    exactly(explained_variance(*as_tensor, mask), expected)


def test_explained_variance_of_special_critics():
    returns = torch.tensor([[1.0, 2.0, 4.0]])
    mask = torch.ones(1, 3)
    exactly(explained_variance(returns, returns, mask), 1.0)
    exactly(explained_variance(returns + 5, returns, mask), 1.0)  # a constant offset is not variance
    exactly(explained_variance(torch.full_like(returns, 3.0), returns, mask), 0.0)
    exactly(explained_variance(-returns, returns, mask), -3.0)


def test_explained_variance_without_variance_is_zero():
    values = torch.tensor([[1.0, 2.0, 3.0]])
    for mask in ([[0, 0, 0]], [[0, 1, 0]]):
        assert explained_variance(values, values, torch.tensor(mask)).item() == 0.0
    values = torch.arange(49.0)[None]
    for constant in (0.0, 0.1, 0.7, -1 / 3, 1e6 + 0.1):  # the mean of 49 of them is not always the number itself
        returns = torch.full_like(values, constant, dtype=torch.float64)
        assert explained_variance(values, returns, torch.ones(1, 49)).item() == 0.0
    with pytest.raises(ValueError, match="returns"):
        explained_variance(values, values[:, :2], values)
