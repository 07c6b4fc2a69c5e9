"""The update: passes of shuffled minibatches over one trajectory, the objective inside."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from apa_cli.algorithms import MeanAccumulator, Objective, Targets, kl_k1
from apa_cli.config.schema import TrainConfig
from apa_cli.models.roles import Models
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.trajectory import Trajectory

Means = defaultdict[str, MeanAccumulator]
ALWAYS = ("objective/policy_loss", "optim/grad_norm")
AT_REST = {"fp32": 1e-3, "bf16": 0.03}  # nats a token, within which a policy cannot be told from its anchor
ALWAYS_OF_CRITIC = ("objective/value_loss", "optim/value_grad_norm")


@dataclass(kw_only=True)
class Progress:
    """Where an update stands: passes of minibatches, each pass in an order of its own, and the means so far."""

    epochs: int = 0  # finished passes
    order: Tensor | None = None  # (n,) rows of the pass under way as they were shuffled; None between passes
    rows: int = 0  # rows of `order` that are done
    means: Means = field(default_factory=lambda: defaultdict(MeanAccumulator))

    def minibatches(self, trained: Tensor, *, epochs: int, size: int, together: int = 1) -> Iterator[Tensor]:
        """Rows of each minibatch, (size,) or fewer, of those that are `trained` (B,). `rows` is moved by the caller.

        `together` rows that stand side by side are shuffled as one and never parted; `size` is a multiple of it.
        """
        while self.epochs < epochs:
            order = self.order
            if order is None:
                order = (
                    torch.randperm(len(trained) // together)[:, None] * together + torch.arange(together)
                ).flatten()
            done = torch.arange(len(order)) < self.rows
            self.order = order[done | trained[order]]
            while self.rows < len(self.order):
                rest = self.order[self.rows :]
                counts = (rest // together).unique_consecutive(return_counts=True)[1]
                yield rest[: int(counts[: size // together].sum())]
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
        together = max(targets.whole_groups, config.shuffled_together)
        for rows in progress.minibatches(trained, epochs=epochs, size=size, together=together):

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

    Each micro-batch's mean weighs its share of the minibatch's units, so that any split gives the same gradient. Where
    all advantages are 0 and the policy stands at its anchor, it gets no gradient: what there is would be rounding
    noise, of which AdamW makes steps of full size.
    """
    means: Means = defaultdict(MeanAccumulator)
    temperature, k = config.generation.temperature, targets.whole_groups
    tokens, units = trajectory.response_mask[rows].sum(), objective.count(trajectory.response_mask[rows])
    idle, moved = train_policy and not bool(targets.advantages[rows].any()), MeanAccumulator()
    parts = trajectory.microbatches(token_budget, rows)
    wanted = targets.advantages  # (B, U)
    if k > 1 and len(parts) > 1:
        ratios = _log_ratios(models, trajectory, parts, objective, temperature)
        wanted = wanted.clone()
        wanted[rows] = objective.group_targets(wanted[rows], ratios[rows], rows // k)
    for part_rows in parts:
        part = trajectory.select(part_rows)
        T = part.response_ids.shape[1]
        advantages = wanted[part_rows, :T]  # (b, U)
        count, own = part.response_mask.sum(), objective.count(part.response_mask)
        with torch.set_grad_enabled(train_policy):
            logprobs, hidden = models.policy.logprobs(part.batch, temperature=temperature)
            if k > 1 and len(parts) == 1:
                advantages = objective.group_targets(advantages, objective.log_ratios(logprobs, part), part_rows // k)
            loss = objective.loss(logprobs, part, advantages)
        means["objective/policy_loss"].add(loss.value.detach() * own, own)
        backward = [loss.value * (own / units)] if train_policy else []
        if (critic := models.value) is not None:
            if backward and not critic.reads_policy:
                backward.pop().backward()  # the policy's graph is gone before the critic's is made
            assert targets.returns is not None
            values = critic(part.batch, hidden=hidden)  # (b, T)
            error = objective.value_loss(values, part, targets.returns[part_rows, :T])
            means["objective/value_loss"].add(error.detach() * count, count)
            backward.append(config.objective.value_coef * error * (count / tokens))
        if backward:
            torch.autograd.backward(backward)
        for name, (total, number) in loss.metrics.items():
            means[name].add(total, number)
        if idle:
            ratio = kl_k1(logprobs.detach(), objective.anchor_logprobs(part), part.response_mask)
            moved.add_masked(ratio.square(), part.response_mask)
        if part.logged:  # of tokens that π_θ did not draw: no KL
            assert part.reference_logprobs is not None
            means["logged/log_ratio"].add_masked(logprobs.detach() - part.reference_logprobs, part.response_mask)
    if idle := idle and moved.mean() <= AT_REST[config.precision] ** 2:
        for parameter in models.policy.trainable_parameters():
            parameter.grad = None
    if targets.returns is None and train_policy:
        means["optim/idle_fraction"].add(float(idle), 1)
    return means


@torch.no_grad()
def _log_ratios(
    models: Models, trajectory: Trajectory, parts: list[Tensor], objective: Objective, temperature: float
) -> Tensor:
    """(B, U) of the rows in `parts` under the current policy, 0 in all others."""
    ratios = torch.zeros_like(trajectory.response_mask, dtype=torch.float32)  # (B, T)
    ratios = objective.units(trajectory.response_mask, ratios)[1][0].clone()  # (B, U)
    for rows in parts:
        part = trajectory.select(rows)
        logprobs, _ = models.policy.logprobs(part.batch, temperature=temperature)
        found = objective.log_ratios(logprobs, part)  # (b, U)
        ratios[rows, : found.shape[1]] = found
    return ratios


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
