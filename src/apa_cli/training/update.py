"""The update: passes of shuffled minibatches over one rollout, the objective inside."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from apa_cli.algorithms import (
    MeanAccumulator,
    apa_bounded_fraction,
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
from apa_cli.tracking.log import LOGGER
from apa_cli.training.finiteness import Suspects, bad_weights, fault_in, trained_rows
from apa_cli.training.health import Health
from apa_cli.training.memory import enough_memory, within_memory
from apa_cli.training.targets import Targets

ALWAYS = ("objective/policy_loss", "optim/grad_norm")
ALWAYS_OF_CRITIC = ("objective/value_loss", "optim/value_grad_norm")
GIVE_BACK_EVERY = 1.0  # seconds, so that a CPU's peak does not rise with the number of minibatches
_log = logging.getLogger(LOGGER)


def policy_loss(policy_logprobs: Tensor, rollout: Rollout, advantages: Tensor, config: ObjectiveConfig) -> Tensor:
    """The configured objective on (B, T) tensors, a mean over counted tokens."""
    mask = rollout.response_mask
    if config.name == "apa":
        assert rollout.reference_logprobs is not None
        return apa_loss(
            policy_logprobs,
            rollout.reference_logprobs,
            advantages,
            mask,
            kl_lambda=config.own_lambda,
            target_bound=config.target_bound,
            huber_delta=config.huber_delta,
        )
    if config.name == "awr":
        return awr_loss(policy_logprobs, advantages, mask, kl_lambda=config.own_lambda)
    return ppo_loss(policy_logprobs, rollout.sampled[0], advantages, mask, clip_range=config.clip_range)


@dataclass(kw_only=True)
class UpdateProgress:
    """How far an update has come. A checkpoint in its middle keeps this, and the update goes on from there."""

    epochs: int = 0  # finished passes
    order: Tensor | None = None  # (n,) rows of the pass under way as they were shuffled; None between passes
    rows: int = 0  # rows of `order` that are done
    means: dict[str, MeanAccumulator] = field(default_factory=lambda: defaultdict(MeanAccumulator))
    skipped: int = 0  # minibatches left out so far
    stepping: bool = False  # inside an optimizer step: weights and this record do not agree

    def describe(self) -> str:
        done = "" if self.order is None else f", {self.rows} of {len(self.order)} responses"
        return f"pass {self.epochs + 1}{done}"

    def state_dict(self) -> dict[str, Any]:
        """All but `order`, which is a tensor, as JSON holds it."""
        means = {name: [float(mean.total), float(mean.count)] for name, mean in self.means.items()}
        return {"epochs": self.epochs, "rows": self.rows, "means": means, "skipped": self.skipped}

    @classmethod
    def from_state(cls, state: dict[str, Any], order: Tensor | None) -> UpdateProgress:
        progress = cls(epochs=state["epochs"], order=order, rows=state["rows"], skipped=state["skipped"])
        for name, (total, count) in state["means"].items():
            progress.means[name].add(total, count)
        return progress


def update(
    models: Models,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    targets: Targets,
    config: TrainConfig,
    *,
    progress: UpdateProgress | None = None,
    after_minibatch: Callable[[], None] = lambda: None,
    health: Health | None = None,
    setting: str = "",
    train_policy: bool = True,
) -> dict[str, float]:
    """Train policy and critic on `rollout`; every pass reshuffles it. Returns objective/* and optim/* metrics.

    Without `train_policy` the critic alone learns: the policy's loss is measured, and `optim/grad_norm` is NaN.
    `progress` says where to go on, and is kept up to date. `after_minibatch` is called whenever it and the weights
    agree, and may raise to stop there. A response without a usable score is in no minibatch. A minibatch in which
    numbers of the models are not finite is left out, and counted in `health`; `setting` says in warnings where the run
    stands. Raises DivergedError after too many of them in a row, and UserError when a single response does not fit in
    memory; the record and the weights agree then too.
    """
    progress = progress or UpdateProgress()
    health = health or Health.at_start(config.training)
    usable = torch.ones(len(rollout.ended)) if targets.usable is None else targets.usable.cpu()  # (B,)
    trained = trained_rows(rollout, targets.usable)  # (B,)
    with models.policy.training(), models.runtime.large_tensors_apart():
        if models.value is not None:
            models.value.train()
        try:
            while progress.epochs < config.training.epochs_per_rollout:
                order = torch.randperm(len(rollout.response_ids)) if progress.order is None else progress.order
                done = torch.arange(len(order)) < progress.rows  # of an order that an earlier version kept whole
                progress.order = order[done | trained[order]]
                left = progress.order[progress.rows :]
                for rows in left.split(config.training.minibatch_size) if len(left) else ():  # nothing splits into one
                    if bool(usable[rows].all()):
                        culprit = _step(
                            models, optimizer, rollout, targets, rows, config, progress, health, train_policy
                        )
                    else:
                        culprit = bad_weights(models.named_parameters()) or fault_in(rollout, rows)
                    if culprit is not None:
                        _leave_out(rows, culprit, setting, progress, health)
                    after_minibatch()
                    models.runtime.give_back(every=GIVE_BACK_EVERY)
                progress.epochs, progress.order, progress.rows = progress.epochs + 1, None, 0
        finally:
            if models.value is not None:
                models.value.eval()
    always = ALWAYS if models.value is None else (*ALWAYS, *ALWAYS_OF_CRITIC)
    stats = {**dict.fromkeys(always, math.nan), **{name: mean.mean() for name, mean in progress.means.items()}}
    if "objective/target_residual" in stats:
        stats["objective/target_residual"] **= 0.5  # root of the mean square
    skipped = {"minibatches": progress.skipped, "responses": int((~trained).sum())}
    return {**stats, **{f"optim/skipped_{name}": count for name, count in skipped.items()}}


def _step(
    models: Models,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    targets: Targets,
    rows: Tensor,
    config: TrainConfig,
    progress: UpdateProgress,
    health: Health,
    train_policy: bool,
) -> str | None:
    """One minibatch: gradients, clipping of policy and critic apart, an optimizer step.

    Where something is not finite there is no step, and the first such thing is returned.
    """

    def attempt(token_budget: int) -> tuple[dict[str, MeanAccumulator], Suspects]:
        means: dict[str, MeanAccumulator] = defaultdict(MeanAccumulator)
        suspects = Suspects()
        accumulate_gradients(
            models,
            rollout,
            targets,
            rows,
            config,
            means,
            token_budget=token_budget,
            suspects=suspects,
            train_policy=train_policy,
        )
        return means, suspects

    means, suspects = within_memory(
        attempt,
        health.budget,
        lambda tokens: rollout.microbatches(tokens, rows),
        undo=lambda: optimizer.zero_grad(set_to_none=True),
        where="the update",
    )
    trained = {"optim/grad_norm": models.policy.trainable_parameters()} if train_policy else {}
    if models.value is not None:
        trained["optim/value_grad_norm"] = list(models.value.parameters())
    norms = {
        name: nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for name, group in trained.items()
    }
    if not suspects.all_finite(*norms.values()):
        culprit = suspects.culprit(models.named_parameters())
        optimizer.zero_grad(set_to_none=True)
        return culprit
    for name, norm in norms.items():  # only now: clipping by a norm of NaN would spoil every gradient alike
        nn.utils.clip_grads_with_norm_(trained[name], config.optimizer.max_grad_norm, norm)
    progress.stepping = True
    states = "AdamW's two numbers for each trained weight do"  # which it makes room for in its first step
    with enough_memory("policy.adapter.r", states, "train fewer weights: policy=lora, or a lower rank"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for name, mean in means.items():
        progress.means[name].merge(mean)
    for name, norm in norms.items():
        progress.means[name].add(norm, 1)
    progress.rows += len(rows)
    health.skips.passed()
    progress.stepping = False
    return None


def _leave_out(rows: Tensor, culprit: str, setting: str, progress: UpdateProgress, health: Health) -> None:
    if progress.skipped == 0:
        _log.warning("a minibatch is skipped, not finite: %s; %s", culprit, setting)
    progress.skipped += 1
    progress.rows += len(rows)
    health.skips.skipped(culprit, setting)


def accumulate_gradients(
    models: Models,
    rollout: Rollout,
    targets: Targets,
    rows: Tensor,
    config: TrainConfig,
    means: dict[str, MeanAccumulator],
    *,
    token_budget: int | None = None,
    suspects: Suspects | None = None,
    train_policy: bool = True,
) -> None:
    """Backward through the minibatch `rows`, a micro-batch at a time, into `.grad`.

    Each micro-batch's mean weighs its share of the minibatch's tokens, so that any split gives the same gradient.
    `token_budget` stands in for the configured one; `suspects` notes what may turn out not to be finite.
    """
    suspects = suspects or Suspects()
    tokens = rollout.response_mask[rows].sum()
    for part_rows in rollout.microbatches(token_budget or config.training.microbatch_tokens, rows):
        part = rollout.select(part_rows)
        T = part.response_ids.shape[1]
        advantages = targets.advantages[part_rows, :T]
        count = part.response_mask.sum()
        weight = count / tokens
        with torch.set_grad_enabled(train_policy):
            logprobs, hidden = models.policy.logprobs(*part.batch, temperature=config.generation.temperature)
        loss = policy_loss(logprobs, part, advantages, config.objective)
        values = critic = None
        if isinstance(models.value, SharedValue):
            values = models.value.from_hidden(hidden)
            critic = _value_loss(values, part, _returns(targets, part_rows, T), config.objective)
            ((loss + config.objective.value_coef * critic) * weight).backward()
        else:
            if train_policy:
                (loss * weight).backward()
            if models.value is not None:
                values = models.value(*part.batch)
                critic = _value_loss(values, part, _returns(targets, part_rows, T), config.objective)
                (config.objective.value_coef * critic * weight).backward()
        suspects.note("policy log-probs", logprobs, part.response_mask)
        if values is not None:
            suspects.note("values", values, part.response_mask)
        suspects.note("policy loss", loss)
        means["objective/policy_loss"].add(loss.detach() * count, count)
        if critic is not None:
            suspects.note("value loss", critic)
            means["objective/value_loss"].add(critic.detach() * count, count)
        _observe(means, logprobs.detach(), part, advantages, config.objective, count)


def _returns(targets: Targets, rows: Tensor, length: int) -> Tensor:
    assert targets.returns is not None  # there is a critic
    return targets.returns[rows, :length]


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
    if part.logged:
        assert part.reference_logprobs is not None
        ratios = logprobs - part.reference_logprobs  # of tokens that π_θ did not draw: no KL
        means["logged/log_ratio"].add_masked(ratios, part.response_mask)
    if config.name == "apa":
        assert part.reference_logprobs is not None
        mask, kl_lambda, bound = part.response_mask, config.own_lambda, config.target_bound
        squares, tokens = apa_target_residual(
            logprobs, part.reference_logprobs, advantages, mask, kl_lambda=kl_lambda, target_bound=bound
        )
        means["objective/target_residual"].add(squares, tokens)
        if bound is not None:
            fraction = apa_bounded_fraction(advantages, mask, kl_lambda=kl_lambda, target_bound=bound)
            means["objective/bounded_fraction"].add(fraction * count, count)
    if config.name == "ppo":
        fraction = ppo_clip_fraction(
            logprobs, part.sampled[0], advantages, part.response_mask, clip_range=config.clip_range
        )
        means["objective/clip_fraction"].add(fraction * count, count)
