"""What every policy objective is: token rewards and targets, a loss with its metrics, and one KL knob.

An objective works on units: tokens, or whole responses, each of which is then one action whose log-prob is the sum of
its tokens'. U is T for tokens and 1 for responses.

An objective is a subclass of `Objective` in a file of this folder, by the file's name: `objective.name=apa` is
`algorithms/apa.py`. The fields of the dataclass are the keys of the `objective` group that it reads. Beside the class
stand two literals, which the configuration reads without importing torch: KNOB, the key and the symbol of the KL knob,
and DEFAULTS, what a key that is null stands for.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from apa_cli.algorithms.adaptive import SteeredLambda
from apa_cli.algorithms.gae import gae, terminal_rewards
from apa_cli.algorithms.group import (
    group_mean,
    leave_one_out,
    log_mean_exp,
    reference_quantile,
    reference_value,
    unit_spread,
)
from apa_cli.algorithms.kl import kl_k1, per_response
from apa_cli.algorithms.masking import whiten, zero_masked
from apa_cli.algorithms.value import value_loss

__all__ = ["Knob", "Loss", "Objective", "Responses", "SteeredObjective", "Targets", "make_objective"]


class Responses(Protocol):
    """What an objective reads of B responses: a trajectory, or the rows of a micro-batch."""

    @property
    def response_mask(self) -> Tensor: ...  # (B, T) bool
    @property
    def rollout_logprobs(self) -> Tensor | None: ...  # (B, T) policy that sampled; None of logged responses
    @property
    def reference_logprobs(self) -> Tensor | None: ...  # (B, T) initial policy
    @property
    def values(self) -> Tensor | None: ...  # (B, T) critic at the rollout; None without one


class Advantage(Protocol):
    """How advantages are estimated: the `advantage` group."""

    name: str  # gae | group | reference
    gamma: float
    gae_lambda: float
    baseline: str  # group: leave_one_out | mean | log_mean_exp | least_squares; reference: value | quantile
    group_scale: bool
    whiten: bool


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What an update aims at."""

    advantages: Tensor  # (B, U) as the loss sees them: whitened over the whole rollout unless switched off
    returns: Tensor | None = None  # (B, T) from the unwhitened advantages; None without a critic
    usable: Tensor  # (B,) bool, rows that may be trained on
    metrics: Mapping[str, float] = field(default_factory=dict)
    whole_groups: int = 1  # rows that a minibatch must hold together, as their targets depend on each other's log-probs


@dataclass(frozen=True, kw_only=True)
class Loss:
    value: Tensor  # scalar, a mean over `Objective.count` units; the gradient reaches policy log-probs only
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # sum and count; no gradient


class Rule(Protocol):
    """Moves a knob towards a target KL."""

    @property
    def value(self) -> float: ...
    def state_dict(self) -> Mapping[str, float | None]: ...
    def load_state_dict(self, state: Any) -> None: ...


@dataclass(kw_only=True)
class Knob:
    """λ or β: fixed, or moved by a rule after every rollout. Its value is training state."""

    key: str  # as the configuration and the metrics call it
    symbol: str
    fixed: float
    rule: Rule | None = None

    @property
    def value(self) -> float:
        return self.rule.value if self.rule is not None else self.fixed

    def state_dict(self) -> dict[str, float | None] | None:
        """Of the rule; None where the knob is fixed."""
        return dict(self.rule.state_dict()) if self.rule is not None else None

    def load_state_dict(self, state: Mapping[str, float | None] | None) -> None:
        """Continue from a checkpoint, where both it and this run steer."""
        if self.rule is not None and state is not None:
            self.rule.load_state_dict(state)


class Objective(ABC):
    """A policy objective. B responses, T response tokens; log-probs in nats."""

    knob: Knob
    level: str = "token"  # what is one unit: a token, or a whole response (sequence)
    anchor: str = "initial"  # whose log-probs π_θ is compared with: the initial policy's, or those of the rollout

    def token_rewards(self, scores: Tensor, responses: Responses, mask: Tensor) -> Tensor:
        """(B,) scores -> (B, T) rewards. Here the score stands at the last counted token."""
        return terminal_rewards(scores, mask)

    def targets(
        self,
        responses: Responses,
        scores: Tensor,
        usable: Tensor,
        advantage: Advantage,
        *,
        group_size: int,
        reference_scores: Tensor | None = None,
    ) -> Targets:
        """Advantages, and the returns that the critic is fitted to, of shaped scores (B,).

        Rows that are not `usable` (B,) count for nothing, as if they were masked: in a group they are nobody's
        baseline, and one that is left alone there has nothing to be compared with, so that it is not usable either.
        `group_size` responses to one prompt stand next to each other. `reference_scores` (B, S) are those of the
        initial policy's responses to each row's prompt, NaN where there is none.
        """
        if advantage.name == "gae":
            return self._critic_targets(responses, scores, usable, advantage)
        if advantage.name == "group":
            usable = usable & (usable.view(-1, group_size).sum(dim=1) > 1).repeat_interleave(group_size)
        else:
            assert reference_scores is not None
            usable = usable & reference_scores.isfinite().any(dim=1)
        mask = responses.response_mask & usable[:, None]  # (B, T)
        # A response is one action, so each of its tokens is given the whole response's advantage. What is compared
        # is the response's return Σ r_t, as in RLOO (arXiv:2402.14740, section 3.2).
        totals = self.token_rewards(scores, responses, mask).double().sum(dim=1)  # (B,)
        knob = self.knob.value
        match advantage.baseline:
            case "leave_one_out":
                found = leave_one_out(totals, group_size, scale=advantage.group_scale, usable=usable)
            case "mean" | "least_squares":
                found = group_mean(totals, group_size, scale=advantage.group_scale, usable=usable)
            case "log_mean_exp":
                found = log_mean_exp(totals, group_size, kl_lambda=knob, usable=usable)
            case "value" | "quantile":
                assert reference_scores is not None
                estimate = reference_value if advantage.baseline == "value" else reference_quantile
                found = estimate(totals, reference_scores, kl_lambda=knob)
            case other:
                raise ValueError(f"no such baseline: {other}")
        counted, _ = self.units(mask)  # (B, U)
        advantages = zero_masked(found.float()[:, None].expand(counted.shape), counted)
        return Targets(
            advantages=unit_spread(advantages, counted) if advantage.whiten else advantages,
            usable=usable,
            whole_groups=group_size if advantage.baseline == "least_squares" else 1,
        )

    def _critic_targets(self, responses: Responses, scores: Tensor, usable: Tensor, advantage: Advantage) -> Targets:
        mask = responses.response_mask & usable[:, None]  # (B, T)
        assert responses.values is not None
        advantages, returns = gae(
            self.token_rewards(scores, responses, mask),
            responses.values,
            mask,
            gamma=advantage.gamma,
            gae_lambda=advantage.gae_lambda,
        )
        whitened = whiten(advantages, mask) if advantage.whiten else advantages
        return Targets(advantages=whitened, returns=returns, usable=usable)

    def units(self, mask: Tensor, *logprobs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mask and log-probs (B, T) by unit, (B, U): as they are, or of a response the sum over its counted tokens."""
        if self.level == "token":
            return mask, logprobs
        return mask.any(dim=1, keepdim=True), tuple(per_response(own, mask)[:, None] for own in logprobs)

    def count(self, mask: Tensor) -> Tensor:
        """Number of units, over which the loss is a mean and by which micro-batches weigh: a scalar."""
        return self.units(mask)[0].sum()

    def anchor_logprobs(self, responses: Responses) -> Tensor:
        """(B, T) of the policy that π_θ is compared with, at which no advantage means no move."""
        found = responses.rollout_logprobs if self.anchor == "rollout" else responses.reference_logprobs
        assert found is not None
        return found

    @torch.no_grad()
    def log_ratios(self, policy_logprobs: Tensor, responses: Responses) -> Tensor:
        """log π_θ − log π_anchor of each unit, (B, U), 0 where nothing counts; nats."""
        ratios = kl_k1(policy_logprobs, self.anchor_logprobs(responses), responses.response_mask)
        return self.units(responses.response_mask, ratios)[1][0]

    def group_targets(self, advantages: Tensor, log_ratios: Tensor, groups: Tensor) -> Tensor:
        """(b, U) advantages of a minibatch, given the units' log-ratios under the current policy and rows' groups (b,).

        Called where `Targets.whole_groups` is more than 1. Here they stay as they are.
        """
        return advantages

    @abstractmethod
    def loss(self, policy_logprobs: Tensor, responses: Responses, advantages: Tensor) -> Loss:
        """Of log-probs (B, T) and advantages (B, U), with metrics beside it."""

    def value_loss(self, values: Tensor, responses: Responses, returns: Tensor) -> Tensor:
        """Half the critic's mean squared error, a scalar."""
        return value_loss(values, returns, responses.response_mask)

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics of a whole update from the means of `Loss.metrics`."""
        return means

    def caution(self) -> str | None:
        """What somebody should know before training with these settings."""
        return None

    @abstractmethod
    def steer(self, kl: float, responses: int) -> None:
        """Move the knob, where it is steered, after `responses` responses whose mean KL was `kl` nats."""


@dataclass(kw_only=True)
class SteeredObjective(Objective):
    """An objective whose knob is λ = kl_lambda, steered by `SteeredLambda` where kl_target is set."""

    kl_lambda: float
    kl_target: float | None = None
    kl_lambda_min: float = 0.05
    kl_lambda_max: float = 20.0
    kl_gain: float = 0.3
    kl_damping: float = 1.5

    def __post_init__(self) -> None:
        rule = None
        if self.kl_target is not None:
            rule = SteeredLambda(
                self.kl_lambda,
                target=self.kl_target,
                gain=self.kl_gain,
                damping=self.kl_damping,
                floor=self.kl_lambda_min,
                ceiling=self.kl_lambda_max,
            )
        self._steered = rule
        self.knob = Knob(key="kl_lambda", symbol="λ", fixed=self.kl_lambda, rule=rule)

    def steer(self, kl: float, responses: int) -> None:
        if self._steered is not None:
            self._steered.update(kl)


def make_objective(name: str, settings: Mapping[str, Any]) -> Objective:
    """The objective of `algorithms/{name}.py` with those of `settings` that it reads."""
    module = importlib.import_module(f"apa_cli.algorithms.{name}")
    (kind,) = (
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Objective) and found.__module__ == module.__name__
    )
    return kind(**{own.name: settings[own.name] for own in fields(kind)})  # type: ignore[arg-type]
