"""Leave-one-out advantages by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from apa_cli.algorithms import leave_one_out, unit_spread


def f64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_by_hand():
    """Groups (1, 2, 6) and (0, −3, 3): the others' means are 4, 3.5, 1.5 and 0, 1.5, −1.5."""
    advantages = leave_one_out(f64(1, 2, 6, 0, -3, 3), 3)
    assert_close(advantages, f64(-3, -1.5, 4.5, 0, -4.5, 4.5))


def test_scaled_by_hand():
    """(1, 2, 6) has mean 3 and variance (4 + 1 + 9) / 2 = 7."""
    advantages = leave_one_out(f64(1, 2, 6), 3, scale=True)
    assert_close(advantages, f64(-3, -1.5, 4.5) / math.sqrt(7), rtol=1e-8, atol=0)


@pytest.mark.parametrize("scale", [False, True])
def test_equal_scores_and_lone_rows_are_exactly_0(scale):
    assert leave_one_out(torch.full((6,), 0.1), 3, scale=scale).tolist() == [0.0] * 6
    assert leave_one_out(torch.full((49,), 0.1, dtype=torch.float64), 49, scale=scale).tolist() == [0.0] * 49
    assert leave_one_out(torch.tensor([1.0, 2.0]), 1, scale=scale).tolist() == [0.0, 0.0]
    assert leave_one_out(torch.zeros(0), 4, scale=scale).tolist() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, 100.0])
def test_a_bad_row_is_nobodys_baseline(bad):
    usable = torch.tensor([True, False, True, True, False, False])
    scores = torch.tensor([1.0, bad, 3.0, 5.0, bad, bad])
    assert leave_one_out(scores, 3, usable=usable).tolist() == [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    scaled = leave_one_out(scores, 3, usable=usable, scale=True)  # 1 and 3: variance 2
    assert_close(scaled, torch.tensor([-2.0, 0.0, 2.0, 0.0, 0.0, 0.0]) / math.sqrt(2))


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12), st.integers(1, 6))
def test_is_the_equation(scores, size):
    scores = scores[: len(scores) // size * size]
    expected = []
    for i, score in enumerate(scores):
        first = i // size * size
        others = [scores[j] for j in range(first, first + size) if j != i]
        expected.append(score - sum(others) / len(others) if others else 0.0)
    advantages = leave_one_out(torch.tensor(scores, dtype=torch.float64), size)
    assert_close(advantages, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_dtypes():
    assert leave_one_out(torch.tensor([1.0, 2.0]).bfloat16(), 2).dtype == torch.float32
    assert leave_one_out(f64(1, 2), 2).dtype == torch.float64
    large = torch.tensor([16_777_216.0, 1.0, 1.0])  # 2²⁴ + 1 is no float32
    assert leave_one_out(large, 3)[1].item() == pytest.approx(1 - 16_777_217 / 2, abs=0.5)


@pytest.mark.parametrize(
    ("scores", "size", "usable"),
    [
        (torch.ones(5), 2, None),
        (torch.ones(4), 0, None),
        (torch.ones(2, 2), 2, None),
        (torch.ones(4), 2, torch.ones(3)),
    ],
)
def test_refused(scores, size, usable):
    with pytest.raises(ValueError, match=r"groups of|same shape"):
        leave_one_out(scores, size, usable=usable)


def test_unit_spread_by_hand():
    """(3, −4, 0) has the mean square 25 / 3; what is masked counts for nothing."""
    x, mask = torch.tensor([[3.0, -4.0], [0.0, math.nan]]), torch.tensor([[1, 1], [1, 0]])
    assert_close(unit_spread(x, mask), torch.tensor([[3.0, -4.0], [0.0, 0.0]]) / math.sqrt(25 / 3))
    assert unit_spread(torch.zeros(2, 2), mask).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert unit_spread(x, torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
