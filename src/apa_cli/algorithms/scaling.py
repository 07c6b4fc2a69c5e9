"""Scores divided by the running standard deviation of all scores seen so far."""

import math
from typing import TypedDict

from torch import Tensor

from apa_cli.algorithms.checks import check_positive

__all__ = ["RunningMoments", "RunningMomentsState", "scale_scores"]

STD_FLOOR = 1e-8
"""A standard deviation below this counts as no spread at all."""


class RunningMomentsState(TypedDict):
    """What a checkpoint keeps of `RunningMoments`."""

    count: int
    mean: float
    squares: float


class RunningMoments:
    """Count, mean and variance of every score ever seen, in float64, batch by batch.

    Batches are merged by the parallel formula of Chan, Golub and LeVeque (1979), so the result does not depend on how
    the scores were divided up (but for rounding).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # Σ (x − mean)²

    @property
    def var(self) -> float:
        """Unbiased variance; 0.0 with fewer than two scores."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0

    @property
    def std(self) -> float:
        """What to divide scores by: the square root of `var`, and 1.0 while there is no spread to measure.

        That is so with fewer than two scores, and when the standard deviation is below 1e-8 (all scores equal).
        """
        std = math.sqrt(self.var)
        return std if std >= STD_FLOOR else 1.0

    def update(self, scores: Tensor) -> None:
        """Take in a batch of scores of any shape. An empty batch changes nothing.

        Raises ValueError when a score is not finite, before anything is changed: it could never be taken out again.
        """
        batch = scores.detach().double().flatten()
        count = batch.numel()
        if count == 0:
            return
        if not bool(batch.isfinite().all()):
            raise ValueError("scores must be finite")
        mean = batch.mean()
        squares = float((batch - mean).square().sum())
        total = self.count + count
        shift = float(mean) - self.mean
        self._squares += squares + shift * shift * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def state_dict(self) -> RunningMomentsState:
        """Plain numbers, for a checkpoint."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: RunningMomentsState) -> None:
        """Continue from a checkpoint. Raises KeyError when a number is missing."""
        self.count, self.mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])


def scale_scores(scores: Tensor, *, std: float, clip: float | None) -> Tensor:
    """scores / std, then clipped to ±clip unless clip is None. The mean is not subtracted: 0 stays 0.

    Any shape. `clip` is in units of scaled scores.

    Raises ValueError when std or clip is not above 0.
    """
    check_positive(std=std)
    scaled = scores / std
    if clip is None:
        return scaled
    check_positive(clip=clip)
    return scaled.clamp(-clip, clip)
