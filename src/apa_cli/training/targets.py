"""From scores to what the update aims at: rewards per token, advantages and returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apa_cli.algorithms import (
    RunningMoments,
    gae,
    kl_shaped_rewards,
    leave_one_out,
    scale_scores,
    terminal_rewards,
    unit_spread,
    whiten,
    zero_masked,
)
from apa_cli.config.schema import AdvantageConfig, ObjectiveConfig, RewardConfig
from apa_cli.rollouts.record import Rollout


@dataclass(frozen=True, kw_only=True)
class Targets:
    advantages: Tensor  # (B, T) as the objective sees them: whitened over the whole rollout unless switched off
    returns: Tensor | None = None  # (B, T) from the unwhitened advantages; None without a critic
    usable: Tensor | None = None  # (B,) bool, rows that may be trained on; None = all


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    moments: RunningMoments,
    config: ObjectiveConfig,
    usable: Tensor | None = None,
    *,
    length_penalties: Tensor | None = None,
) -> Tensor:
    """Scores (B,) as the objective sees them: less both penalties, over the running deviation, clipped.

    `length_penalties` (B,) come off beside the missing-EOS penalty. The moments are of the scores as given, this
    rollout's included. Rows that are not `usable` (B,) stay out of them and score 0.
    """
    if usable is not None:
        scores = torch.where(usable, scores, 0.0)
    moments.update(scores if usable is None else scores[usable])
    if config.missing_eos_penalty is not None:
        scores = torch.where(ended, scores, scores - config.missing_eos_penalty)
    if length_penalties is not None:
        scores = scores - length_penalties
    std = moments.std if config.score_scaling == "running" else 1.0
    return scale_scores(scores, std=std, clip=config.score_clip)


def length_penalties(response_mask: Tensor, config: RewardConfig) -> Tensor | None:
    """(B,) penalty · max(0, tokens − target), of the counted tokens; None where it is off."""
    if config.length_penalty == 0 or config.length_target is None:
        return None
    return config.length_penalty * (response_mask.sum(dim=1) - config.length_target).clamp(min=0).float()


def estimate_targets(
    rollout: Rollout,
    scores: Tensor,
    objective: ObjectiveConfig,
    advantage: AdvantageConfig,
    *,
    kl_coef: float | None,
    group_size: int = 1,
    usable: Tensor | None = None,
) -> Targets:
    """Advantages of the terminal score (apa, awr) or of the KL-shaped reward with coefficient `kl_coef` (ppo).

    Rows that are not `usable` (B,) count for nothing, as if they were masked: in a group they are nobody's baseline,
    and one that is left alone there has nothing to be compared with, so that it is not usable either.
    `group_size` responses to one prompt stand next to each other.
    """
    assert rollout.reference_logprobs is not None
    if advantage.name == "group" and usable is not None:
        usable = usable & (usable.view(-1, group_size).sum(dim=1) > 1).repeat_interleave(group_size)
    mask = rollout.response_mask if usable is None else rollout.response_mask & usable[:, None]
    if kl_coef is None:
        rewards = terminal_rewards(scores, mask)  # (B, T)
    else:
        rewards = kl_shaped_rewards(scores, rollout.sampled[0], rollout.reference_logprobs, mask, kl_coef=kl_coef)
    if advantage.name == "group":
        return Targets(advantages=_group_advantages(rewards, mask, advantage, group_size, usable), usable=usable)
    assert rollout.values is not None
    advantages, returns = gae(rewards, rollout.values, mask, gamma=advantage.gamma, gae_lambda=advantage.gae_lambda)
    whitened = whiten(advantages, mask) if advantage.whiten else advantages
    return Targets(advantages=whitened, returns=returns, usable=usable)


def _group_advantages(
    rewards: Tensor, mask: Tensor, config: AdvantageConfig, group_size: int, usable: Tensor | None
) -> Tensor:
    """(B, T): a response is one action, so each of its tokens is given the whole response's advantage.

    What is compared is the response's return Σ r_t; of the KL-shaped reward that is s − β Σ (log π − log π_ref), as in
    RLOO (arXiv:2402.14740, section 3.2).
    """
    totals = rewards.double().sum(dim=1)  # (B,)
    totals = leave_one_out(totals, group_size, scale=config.group_scale, usable=usable).float()
    advantages = zero_masked(totals[:, None].expand(mask.shape), mask)  # (B, T)
    return unit_spread(advantages, mask) if config.whiten else advantages
