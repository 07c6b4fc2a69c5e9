"""Further prompts in place of those whose responses all score alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from apa_cli.algorithms import equal_groups
from apa_cli.config.schema import TrainConfig
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.training.targets import length_penalties, less_penalties


def replace_equal_groups(
    trajectory: Trajectory, config: TrainConfig, respond: Callable[[int], Trajectory]
) -> tuple[Trajectory, int]:
    """The trajectory with groups replaced of which nothing can be learnt, and how many prompts that took.

    `respond` gives the scored responses to that many further prompts. At most `rollout.dynamic_sampling` are drawn, as
    in DAPO (arXiv:2503.14476, section 3.2).
    """
    limit, k, drawn = config.rollout.dynamic_sampling, config.rollout.responses_per_prompt, 0
    while drawn < limit:
        assert trajectory.scores is not None
        penalties = length_penalties(trajectory.response_mask, config.reward)
        scores = less_penalties(trajectory.scores, trajectory.ended, config.objective, penalties)
        equal = equal_groups(scores, k, usable=trajectory.scored & trajectory.sound).nonzero().flatten().cpu()
        places = equal[: limit - drawn]  # (g,)
        if not len(places):
            break
        trajectory = with_groups(trajectory, places, respond(len(places)), k)
        drawn += len(places)
    return trajectory, drawn


def with_groups(trajectory: Trajectory, places: Tensor, further: Trajectory, group_size: int) -> Trajectory:
    """`trajectory` with the groups at `places` (g,) replaced by those of `further`, (g · k) rows; without texts."""
    rows = (places[:, None] * group_size + torch.arange(group_size)).flatten()
    if trajectory.packed_rows is not None and further.packed_rows is not None:
        further = replace(further, packed_rows=further.packed_rows + trajectory.packed_rows.max() + 1)
    changes: dict[str, Any] = {}
    for own in fields(trajectory):
        mine, other = getattr(trajectory, own.name), getattr(further, own.name)
        if isinstance(mine, Tensor):
            changes[own.name] = _with_rows(mine, rows, other, left=own.name.startswith("prompt_"))
    named = {name: _with_rows(mine, rows, further.named_scores[name]) for name, mine in trajectory.named_scores.items()}
    return replace(trajectory, **changes, named_scores=named, texts=None)


def _with_rows(mine: Tensor, rows: Tensor, other: Tensor, *, left: bool = False) -> Tensor:
    """`mine` (B,) or (B, T) with `other` in place of `rows`, both padded with 0 on one side to the wider one."""
    if mine.dim() == 2:
        width = max(mine.shape[1], other.shape[1])
        mine, other = (
            torch.nn.functional.pad(own, (width - own.shape[1], 0) if left else (0, width - own.shape[1]))
            for own in (mine, other)
        )
    return mine.index_copy(0, rows.to(mine.device), other)
