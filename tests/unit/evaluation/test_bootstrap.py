"""Intervals: means and ratios by hand, coverage by simulation, the jackknife from its textbook formula."""

import math

import numpy as np
import pytest

from apa_cli.evaluation.bootstrap import Estimate, bootstrap_mean, bootstrap_ratio, jackknife


def test_a_ratio_is_that_of_the_sums():
    """(1 + 2) / (10 + 1), not the mean of 1/10 and 2/1."""
    assert bootstrap_ratio([1.0, 2.0], [10.0, 1.0], resamples=50, seed=0).value == pytest.approx(3 / 11)


def test_a_ratio_resamples_whole_prompts():
    """Two prompts: a resample is both of the first, both of the second or one of each, and nothing between."""
    figure = bootstrap_ratio([1.0, 2.0], [10.0, 1.0], resamples=500, seed=0)
    assert (figure.low, figure.high) == pytest.approx((1 / 10, 2.0))


def test_intervals_are_percentiles_of_the_mean():
    """For many values the interval is mean ± 1.96 standard deviations / √n."""
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    figure = bootstrap_mean(values.tolist(), resamples=4000, seed=0)
    half = 1.96 * values.std() / 20
    assert figure.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_ratio_intervals_cover_the_truth():
    """Entropy per token: the sum over a response goes with its length, on average 1.5 nats a token."""
    draws = np.random.default_rng(3)
    covered = 0
    for trial in range(400):
        lengths = draws.integers(5, 30, size=64)
        sums = lengths * draws.normal(1.5, 0.4, size=64)
        figure = bootstrap_ratio(sums.tolist(), lengths.tolist(), resamples=300, seed=trial)
        covered += figure.low <= 1.5 <= figure.high
    assert 0.90 <= covered / 400 <= 0.99


def test_what_does_not_vary_has_no_width():
    for values in ([2.5] * 9, [2.5]):
        assert bootstrap_mean(values, resamples=100, seed=0) == Estimate(value=2.5, low=2.5, high=2.5)
    assert bootstrap_ratio([0.0, 0.0], [0.0, 0.0], resamples=10, seed=0) == Estimate(value=0.0, low=0.0, high=0.0)


def test_the_seed_decides():
    values = np.random.default_rng(4).normal(size=30).tolist()
    first = bootstrap_mean(values, resamples=100, seed=7)
    assert bootstrap_mean(values, resamples=100, seed=7) == first
    other = bootstrap_mean(values, resamples=100, seed=8)
    assert other.value == first.value
    assert (other.low, other.high) != (first.low, first.high)


def test_jackknife_of_a_mean_is_the_standard_error():
    """The textbook: for a mean, √((n − 1)/n Σ (θ_i − θ̄)²) equals s / √n with the unbiased s."""
    values = [0.1, 0.5, 0.4, 0.9, 0.3, 0.6]
    without = [(sum(values) - value) / 5 for value in values]
    figure = jackknife(sum(values) / 6, without)
    error = np.std(values, ddof=1) / math.sqrt(6)
    assert figure.value == pytest.approx(2.8 / 6)
    assert figure.low == pytest.approx(2.8 / 6 - 1.959964 * error)
    assert figure.high == pytest.approx(2.8 / 6 + 1.959964 * error)


def test_jackknife_worked_by_hand():
    """θ_i = 0.4, 0.5, 0.6 about their own mean: √(2/3 · (0.01 + 0 + 0.01)) = 0.115470, whatever the whole gives."""
    figure = jackknife(0.45, [0.4, 0.5, 0.6])
    assert figure.high - figure.value == pytest.approx(1.959964 * 0.1154701, rel=1e-5)
    assert figure.value - figure.low == pytest.approx(figure.high - figure.value)


def test_jackknife_stays_a_fraction():
    assert jackknife(0.9, [0.2, 0.95, 1.0]).high == 1.0
    assert jackknife(0.1, [0.8, 0.05, 0.0]).low == 0.0


def test_jackknife_of_one_prompt_knows_nothing():
    assert jackknife(0.7, [0.0]) == Estimate(value=0.7, low=0.0, high=1.0)
