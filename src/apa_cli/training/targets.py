"""Scores as the objective sees them: less what length and a missing end cost, in units of their running deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from apa_cli.algorithms import RunningMoments, scale_scores
from apa_cli.config.schema import ObjectiveConfig, RewardConfig


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    moments: RunningMoments,
    config: ObjectiveConfig,
    usable: Tensor,
    *,
    length_penalties: Tensor | None = None,
) -> Tensor:
    """Scores (B,) less both penalties, over the running deviation, clipped.

    `length_penalties` (B,) come off beside the missing-EOS penalty. The moments are of the scores as given, this
    rollout's included. Rows that are not `usable` (B,) stay out of them and score 0.
    """
    moments.update(scores[usable])
    scores = less_penalties(torch.where(usable, scores, 0.0), ended, config, length_penalties)
    std = moments.std if config.score_scaling == "running" else 1.0
    return scale_scores(scores, std=std, clip=config.score_clip)


def less_penalties(scores: Tensor, ended: Tensor, config: ObjectiveConfig, length_penalties: Tensor | None) -> Tensor:
    """Scores (B,) less what a missing end and, where given, length (B,) cost."""
    if config.missing_eos_penalty is not None:
        scores = torch.where(ended, scores, scores - config.missing_eos_penalty)
    return scores if length_penalties is None else scores - length_penalties


def length_penalties(response_mask: Tensor, config: RewardConfig) -> Tensor | None:
    """(B,) penalty · max(0, tokens − target), of the counted tokens; None where it is off."""
    if config.length_penalty == 0 or config.length_target is None:
        return None
    return config.length_penalty * (response_mask.sum(dim=1) - config.length_target).clamp(min=0).float()
