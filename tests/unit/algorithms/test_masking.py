import math
import statistics

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import MeanAccumulator, check_same_shape, masked_mean, masked_sum, whiten, zero_masked

NAN, INF = math.nan, math.inf


def exactly(actual, expected):
    assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-9)


def test_check_same_shape_names_the_tensor_that_differs():
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    check_same_shape()
    check_same_shape(values=a, returns=a.clone())
    with pytest.raises(ValueError, match=r"returns has shape \(2, 4\), but values has shape \(2, 3\)"):
        check_same_shape(values=a, rewards=a, returns=b)


def test_same_number_of_elements_is_not_the_same_shape():
    with pytest.raises(ValueError, match="mask"):
        masked_mean(torch.zeros(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="mask"):
        masked_sum(torch.zeros(2, 3), torch.ones(3))


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float64, torch.int64])
def test_masked_sum_and_mean(mask_dtype):
    x = torch.tensor([[1.0, 2.0, NAN], [4.0, INF, -INF]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).to(mask_dtype)
    exactly(masked_sum(x, mask), 7.0)
    exactly(masked_mean(x, mask), 7.0 / 3.0)


def test_masked_positions_get_no_gradient_even_when_not_finite():
    x = torch.tensor([1.0, NAN, 3.0, INF], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    # d/dx (1/2) Σ m x² = m x
    masked_mean(zero_masked(x, mask).square(), mask).backward()
    exactly(x.grad, [1.0, 0.0, 3.0, 0.0])


def test_empty_mask_gives_zero_and_zero_gradient():
    x = torch.tensor([[NAN, 2.0]], requires_grad=True)
    mask = torch.zeros(1, 2)
    mean = masked_mean(x, mask)
    mean.backward()
    assert mean.item() == 0.0
    assert x.grad.tolist() == [[0.0, 0.0]]
    assert masked_sum(x, mask).item() == 0.0


def test_half_precision_is_summed_in_float32():
    ones = torch.ones(1, 5000, dtype=torch.bfloat16)  # bfloat16 itself cannot count beyond 256 by ones
    assert masked_sum(ones, torch.ones(1, 5000)).dtype == torch.float32
    assert masked_sum(ones, torch.ones(1, 5000)).item() == 5000.0
    assert masked_mean(ones, torch.ones(1, 5000)).item() == 1.0


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_matches_a_plain_loop(shift_mean):
    x = torch.tensor([[0.5, -1.0, 2.0, NAN], [3.5, 7.0, INF, -INF]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    counted = [0.5, -1.0, 2.0, 3.5]  # the 7.0 is masked
    mean, std = statistics.mean(counted), math.sqrt(statistics.variance(counted) + 1e-8)
    white = [(c - mean) / std + (0.0 if shift_mean else mean) for c in counted]
    expected = torch.zeros(2, 4, dtype=torch.float64)
    expected[1, 0] = white[3]
    expected[0, :3] = torch.tensor(white[:3], dtype=torch.float64)
    exactly(whiten(x, mask, shift_mean=shift_mean), expected)


@pytest.mark.parametrize("counted", [0, 1])
def test_whiten_without_spread_is_zero_or_the_mean(counted):
    x = torch.tensor([[7.0, NAN, 3.0]])
    mask = torch.tensor([[counted, 0, 0]])
    assert whiten(x, mask).tolist() == [[0.0, 0.0, 0.0]]
    assert whiten(x, mask, shift_mean=False).tolist() == [[7.0 * counted, 0.0, 0.0]]


def test_whitening_equal_float32_values_makes_no_noise():
    x = torch.full((3, 101), 1000.1)
    assert whiten(x, torch.ones_like(x)).abs().max() < 1e-6
    assert whiten(x, torch.ones_like(x)).dtype == torch.float32


def test_accumulated_micro_batches_give_the_mean_of_all():
    parts = [[1.0, 2.0, 6.0], [10.0], []]  # Σ = 19 over 4; the mean of means would differ
    whole, merged = MeanAccumulator(), MeanAccumulator()
    for part in parts:
        x = torch.tensor([*part, NAN])
        mask = torch.tensor([True] * len(part) + [False])
        whole.add_masked(x, mask)
        one = MeanAccumulator()
        one.add(sum(part), len(part))
        merged.merge(one)
    assert whole.mean() == 4.75
    assert merged.mean() == 4.75


def test_accumulator_without_counts_and_without_graph():
    accumulator = MeanAccumulator()
    assert accumulator.mean() == 0.0
    accumulator.add(torch.tensor(3.0, requires_grad=True), torch.tensor(2))
    assert not accumulator.total.requires_grad
    assert accumulator.mean() == 1.5
