"""95 % intervals over prompts: how far a figure would move with other prompts of the same kind.

A resample draws whole prompts with replacement, so that what belongs to one prompt stays together (Efron 1979).
Diversity of a batch (unique fraction, distinct-n) cannot be resampled so: every prompt drawn twice would count as a
repetition. Its interval comes from the jackknife, which leaves out one prompt at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
Z = 1.959964  # of the normal distribution, for LEVEL


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, resamples: int, seed: int
) -> Estimate:
    """Σ numerators / Σ denominators over prompts, with the percentile interval of `resamples` resamples.

    One entry per prompt. With all denominators 1 it is a mean; with lengths, a mean over tokens.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    value = divide(above.sum(), below.sum())
    draws = np.random.default_rng(seed).integers(0, len(above), size=(resamples, len(above)))
    ratios = np.array([divide(above[rows].sum(), below[rows].sum()) for rows in draws])
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=float(value), low=float(low), high=float(high))


def bootstrap_mean(values: Sequence[float], *, resamples: int, seed: int) -> Estimate:
    """The mean over prompts."""
    return bootstrap_ratio(values, [1.0] * len(values), resamples=resamples, seed=seed)


def jackknife(whole: float, without: Sequence[float]) -> Estimate:
    """A fraction of all prompts, ± 1.96 jackknife standard errors, kept within 0 and 1.

    `without`: the same fraction with each prompt left out in turn. One prompt alone says nothing of the others.
    """
    n = len(without)
    if n < 2:
        return Estimate(value=whole, low=0.0, high=1.0)
    center = math.fsum(without) / n
    error = math.sqrt((n - 1) / n * math.fsum((value - center) ** 2 for value in without))
    return Estimate(value=whole, low=max(0.0, whole - Z * error), high=min(1.0, whole + Z * error))


def divide(above: float, below: float) -> float:
    return above / below if below else 0.0
