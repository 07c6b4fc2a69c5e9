"""The weighted sum of several rewards, whose scores are kept beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from apa_cli.errors import UserError
from apa_cli.rewards.function import within_float32
from apa_cli.rewards.math import MathReward
from apa_cli.rewards.record import FinishedResponses, Scored, Scorer


class WeightedRewards:
    """Σ weight · score; NaN for a response if a score is not finite."""

    def __init__(self, scorers: Mapping[str, Scorer], weights: Mapping[str, float]) -> None:
        self.scorers, self.weights = dict(scorers), dict(weights)

    def __call__(self, finished: FinishedResponses) -> list[float]:
        return self.score(finished).scores

    def score(self, finished: FinishedResponses) -> Scored:
        scored = {name: score(scorer, finished) for name, scorer in self.scorers.items()}
        rows = zip(*(part.scores for part in scored.values()), strict=True)
        parts = {name: part.scores for name, part in scored.items()}
        counts = {f"{name}_{what}": given for name, part in scored.items() for what, given in part.parts.items()}
        return Scored(scores=[self._sum(row) for row in rows], parts=parts | counts)

    def not_finite(self, row: int, score: float) -> UserError:
        """The error for a sum of finite scores."""
        name = next(iter(self.scorers))
        complaint = self.scorers[name].not_finite(row, score)
        weights = f"{complaint.where.partition('.components.')[0]}.components"
        return UserError(weights, f"response {row} comes to {score}", "lower the weights")

    def _sum(self, row: tuple[float, ...]) -> float:
        if not all(map(math.isfinite, row)):
            return math.nan
        return within_float32(sum(weight * score for weight, score in zip(self.weights.values(), row, strict=True)))


def score(scorer: Scorer, finished: FinishedResponses) -> Scored:
    """The scores of the responses, with those of each part."""
    if isinstance(scorer, (WeightedRewards, MathReward)):
        return scorer.score(finished)
    return Scored(scores=scorer(finished))


def complaint(scorer: Scorer, scored: Scored, row: int) -> UserError:
    """The error for a score that is not finite, of the first component without one."""
    if isinstance(scorer, WeightedRewards):
        for name, part in scorer.scorers.items():
            if not math.isfinite(value := scored.parts_of(row)[name]):
                return part.not_finite(row, value)
    return scorer.not_finite(row, scored.scores[row])


def by_role(role: str, scorer: Scorer | None) -> dict[str, Scorer | None]:
    """A reward, or each of several as `role.NAME`."""
    if isinstance(scorer, WeightedRewards):
        return {f"{role}.{name}": part for name, part in scorer.scorers.items()}
    return {role: scorer}


def require_scores(scorer: Scorer, scored: Scored) -> None:
    """Raise the scorer's error if no response has a finite score."""
    if not any(map(math.isfinite, scored.scores)):
        raise complaint(scorer, scored, 0)
