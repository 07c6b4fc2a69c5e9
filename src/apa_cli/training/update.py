"""The update: passes of shuffled minibatches over one trajectory, the objective inside."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from apa_cli.algorithms import MeanAccumulator, Objective, Targets
from apa_cli.config.schema import TrainConfig
from apa_cli.models.roles import Models
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.trajectory import Trajectory

Means = defaultdict[str, MeanAccumulator]
ALWAYS = ("objective/policy_loss", "optim/grad_norm")
ALWAYS_OF_CRITIC = ("objective/value_loss", "optim/value_grad_norm")


@dataclass(kw_only=True)
class Progress:
    """Where an update stands: passes of minibatches, each pass in an order of its own, and the means so far."""

    epochs: int = 0  # finished passes
    order: Tensor | None = None  # (n,) rows of the pass under way as they were shuffled; None between passes
    rows: int = 0  # rows of `order` that are done
    means: Means = field(default_factory=lambda: defaultdict(MeanAccumulator))

    def minibatches(self, trained: Tensor, *, epochs: int, size: int) -> Iterator[Tensor]:
        """Rows of each minibatch, (size,) or fewer, of those that are `trained` (B,). `rows` is moved by the caller."""
        while self.epochs < epochs:
            order = torch.randperm(len(trained)) if self.order is None else self.order
            done = torch.arange(len(order)) < self.rows
            self.order = order[done | trained[order]]
            while self.rows < len(self.order):
                yield self.order[self.rows : self.rows + size]
            self.epochs, self.order, self.rows = self.epochs + 1, None, 0


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What the backward through a minibatch found; the gradients themselves lie in `.grad`."""

    means: Means
    norms: dict[str, Tensor]  # of policy and critic, before clipping


def update(
    models: Models,
    optimizer: torch.optim.Optimizer,
    trajectory: Trajectory,
    targets: Targets,
    objective: Objective,
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    attendant: Attendant | None = None,
    train_policy: bool = True,
) -> dict[str, float]:
    """Train policy and critic on `trajectory`. Returns objective/* and optim/* metrics.

    Without `train_policy` the critic alone learns: the policy's loss is measured, and `optim/grad_norm` is NaN.
    A response without a usable score is in no minibatch. `progress` is kept up to date.
    """
    progress = progress or Progress()
    attendant = attendant or Attendant(config.training.microbatch_tokens)
    trained = (targets.usable | ~trajectory.sound).cpu()  # (B,)
    parameters = {"optim/grad_norm": models.policy.trainable_parameters()} if train_policy else {}
    if models.value is not None:
        parameters["optim/value_grad_norm"] = list(models.value.parameters())
    with models.training():
        size, epochs = config.training.minibatch_size, config.training.epochs_per_rollout
        for rows in progress.minibatches(trained, epochs=epochs, size=size):

            def gradients(token_budget: int, rows: Tensor = rows) -> Gradients:
                means = accumulate_gradients(
                    models, trajectory, targets, rows, objective, config, token_budget, train_policy=train_policy
                )
                return Gradients(means=means, norms={name: _norm(group) for name, group in parameters.items()})

            def step(found: Gradients, count: int = len(rows)) -> None:
                for name, norm in found.norms.items():  # policy and critic are clipped apart
                    nn.utils.clip_grads_with_norm_(parameters[name], config.optimizer.max_grad_norm, norm)
                    progress.means[name].add(norm, 1)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                for name, mean in found.means.items():
                    progress.means[name].merge(mean)
                progress.rows += count

            attendant.minibatch(rows, gradients, step)
    always = ALWAYS if models.value is None else (*ALWAYS, *ALWAYS_OF_CRITIC)
    means = {**dict.fromkeys(always, math.nan), **{name: mean.mean() for name, mean in progress.means.items()}}
    return {**objective.summarize(means), "optim/skipped_responses": int((~trained).sum())}


def accumulate_gradients(
    models: Models,
    trajectory: Trajectory,
    targets: Targets,
    rows: Tensor,
    objective: Objective,
    config: TrainConfig,
    token_budget: int,
    *,
    train_policy: bool = True,
) -> Means:
    """Backward through the minibatch `rows`, a micro-batch at a time, into `.grad`. Returns means of its metrics.

    Each micro-batch's mean weighs its share of the minibatch's tokens, so that any split gives the same gradient.
    """
    means: Means = defaultdict(MeanAccumulator)
    tokens = trajectory.response_mask[rows].sum()
    for part_rows in trajectory.microbatches(token_budget, rows):
        part = trajectory.select(part_rows)
        T = part.response_ids.shape[1]
        advantages = targets.advantages[part_rows, :T]  # (b, T)
        count = part.response_mask.sum()
        weight = count / tokens
        with torch.set_grad_enabled(train_policy):
            logprobs, hidden = models.policy.logprobs(*part.batch, temperature=config.generation.temperature)
            loss = objective.loss(logprobs, part, advantages)
        means["objective/policy_loss"].add(loss.value.detach() * count, count)
        backward = [loss.value * weight] if train_policy else []
        if (critic := models.value) is not None:
            if backward and not critic.reads_policy:
                backward.pop().backward()  # the policy's graph is gone before the critic's is made
            assert targets.returns is not None
            values = critic(*part.batch, hidden=hidden)  # (b, T)
            error = objective.value_loss(values, part, targets.returns[part_rows, :T])
            means["objective/value_loss"].add(error.detach() * count, count)
            backward.append(config.objective.value_coef * error * weight)
        if backward:
            torch.autograd.backward(backward)
        for name, (total, number) in loss.metrics.items():
            means[name].add(total, number)
        if part.logged:  # of tokens that π_θ did not draw: no KL
            assert part.reference_logprobs is not None
            means["logged/log_ratio"].add_masked(logprobs.detach() - part.reference_logprobs, part.response_mask)
    return means


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
