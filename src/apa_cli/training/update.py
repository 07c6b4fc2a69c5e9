"""The update: passes of shuffled minibatches over one rollout, the objective inside."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from apa_cli.algorithms import (
    MeanAccumulator,
    apa_loss,
    apa_target_residual,
    awr_loss,
    ppo_clip_fraction,
    ppo_loss,
    value_loss,
)
from apa_cli.config.schema import ObjectiveConfig, TrainConfig
from apa_cli.models.roles import Models
from apa_cli.models.value import SharedValue
from apa_cli.rollouts.record import Rollout
from apa_cli.training.targets import Targets


def policy_loss(policy_logprobs: Tensor, rollout: Rollout, advantages: Tensor, config: ObjectiveConfig) -> Tensor:
    """The configured objective on (B, T) tensors, a mean over counted tokens."""
    mask = rollout.response_mask
    if config.name == "apa":
        assert rollout.reference_logprobs is not None
        return apa_loss(policy_logprobs, rollout.reference_logprobs, advantages, mask, kl_lambda=config.kl_lambda)
    if config.name == "awr":
        return awr_loss(policy_logprobs, advantages, mask, kl_lambda=config.kl_lambda)
    return ppo_loss(policy_logprobs, rollout.rollout_logprobs, advantages, mask, clip_range=config.clip_range)


def update(
    models: Models, optimizer: torch.optim.Optimizer, rollout: Rollout, targets: Targets, config: TrainConfig
) -> dict[str, float]:
    """Train policy and critic on `rollout`; every pass reshuffles it. Returns objective/* and optim/* metrics."""
    means: dict[str, MeanAccumulator] = defaultdict(MeanAccumulator)
    policy_parameters = models.policy.trainable_parameters()
    critic_parameters = list(models.value.parameters())
    with models.policy.training():
        models.value.train()
        for _ in range(config.training.epochs_per_rollout):
            for rows in torch.randperm(len(rollout.response_ids)).split(config.training.minibatch_size):
                accumulate_gradients(models, rollout, targets, rows, config, means)
                clip = config.optimizer.max_grad_norm
                means["optim/grad_norm"].add(nn.utils.clip_grad_norm_(policy_parameters, clip), 1)
                means["optim/value_grad_norm"].add(nn.utils.clip_grad_norm_(critic_parameters, clip), 1)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        models.value.eval()
    stats = {name: mean.mean() for name, mean in means.items()}
    if "objective/target_residual" in stats:
        stats["objective/target_residual"] **= 0.5  # root of the mean square
    return stats


def accumulate_gradients(
    models: Models,
    rollout: Rollout,
    targets: Targets,
    rows: Tensor,
    config: TrainConfig,
    means: dict[str, MeanAccumulator],
) -> None:
    """Backward through the minibatch `rows`, a micro-batch at a time, into `.grad`.

    Each micro-batch's mean weighs its share of the minibatch's tokens, so that any split gives the same gradient.
    """
    tokens = rollout.response_mask[rows].sum()
    for part_rows in rollout.microbatches(config.training.microbatch_tokens, rows):
        part = rollout.select(part_rows)
        T = part.response_ids.shape[1]
        advantages, returns = targets.advantages[part_rows, :T], targets.returns[part_rows, :T]
        count = part.response_mask.sum()
        weight = count / tokens
        logprobs, hidden = models.policy.logprobs(*part.batch, temperature=config.generation.temperature)
        loss = policy_loss(logprobs, part, advantages, config.objective)
        if isinstance(models.value, SharedValue):
            critic = _value_loss(models.value.from_hidden(hidden), part, returns, config.objective)
            ((loss + config.objective.value_coef * critic) * weight).backward()
        else:
            (loss * weight).backward()
            critic = _value_loss(models.value(*part.batch), part, returns, config.objective)
            (config.objective.value_coef * critic * weight).backward()
        means["objective/policy_loss"].add(loss.detach() * count, count)
        means["objective/value_loss"].add(critic.detach() * count, count)
        _observe(means, logprobs.detach(), part, advantages, config.objective, count)


def _value_loss(values: Tensor, part: Rollout, returns: Tensor, config: ObjectiveConfig) -> Tensor:
    if config.name == "ppo" and config.value_clip_range is not None:
        return value_loss(
            values, returns, part.response_mask, rollout_values=part.values, clip_range=config.value_clip_range
        )
    return value_loss(values, returns, part.response_mask)


def _observe(
    means: dict[str, MeanAccumulator],
    logprobs: Tensor,
    part: Rollout,
    advantages: Tensor,
    config: ObjectiveConfig,
    count: Tensor,
) -> None:
    """Metrics beside the loss."""
    if config.name == "apa":
        assert part.reference_logprobs is not None
        squares, tokens = apa_target_residual(
            logprobs, part.reference_logprobs, advantages, part.response_mask, kl_lambda=config.kl_lambda
        )
        means["objective/target_residual"].add(squares, tokens)
    if config.name == "ppo":
        fraction = ppo_clip_fraction(
            logprobs, part.rollout_logprobs, advantages, part.response_mask, clip_range=config.clip_range
        )
        means["objective/clip_fraction"].add(fraction * count, count)
