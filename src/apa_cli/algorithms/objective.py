"""What every policy objective is: token rewards and targets, a loss with its metrics, and one KL knob.

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
from typing import Any, ClassVar, Protocol

from torch import Tensor

from apa_cli.algorithms.adaptive import SteeredLambda
from apa_cli.algorithms.gae import gae, terminal_rewards
from apa_cli.algorithms.group import leave_one_out, unit_spread
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

    name: str  # gae | group
    gamma: float
    gae_lambda: float
    group_scale: bool
    whiten: bool


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What an update aims at."""

    advantages: Tensor  # (B, T) as the loss sees them: whitened over the whole rollout unless switched off
    returns: Tensor | None = None  # (B, T) from the unwhitened advantages; None without a critic
    usable: Tensor  # (B,) bool, rows that may be trained on


@dataclass(frozen=True, kw_only=True)
class Loss:
    value: Tensor  # scalar, a mean over counted tokens; the gradient reaches policy log-probs only
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
    divides_by_rollout: ClassVar[bool] = False  # its loss has π_θ / π_rollout: logged responses will not do

    def token_rewards(self, scores: Tensor, responses: Responses, mask: Tensor) -> Tensor:
        """(B,) scores -> (B, T) rewards. Here the score stands at the last counted token."""
        return terminal_rewards(scores, mask)

    def targets(
        self, responses: Responses, scores: Tensor, usable: Tensor, advantage: Advantage, *, group_size: int
    ) -> Targets:
        """Advantages, and the returns that the critic is fitted to, of shaped scores (B,).

        Rows that are not `usable` (B,) count for nothing, as if they were masked: in a group they are nobody's
        baseline, and one that is left alone there has nothing to be compared with, so that it is not usable either.
        `group_size` responses to one prompt stand next to each other.
        """
        if advantage.name == "group":
            usable = usable & (usable.view(-1, group_size).sum(dim=1) > 1).repeat_interleave(group_size)
        mask = responses.response_mask & usable[:, None]  # (B, T)
        rewards = self.token_rewards(scores, responses, mask)  # (B, T)
        if advantage.name == "group":
            # A response is one action, so each of its tokens is given the whole response's advantage. What is compared
            # is the response's return Σ r_t, as in RLOO (arXiv:2402.14740, section 3.2).
            totals = rewards.double().sum(dim=1)  # (B,)
            totals = leave_one_out(totals, group_size, scale=advantage.group_scale, usable=usable).float()
            advantages = zero_masked(totals[:, None].expand(mask.shape), mask)
            return Targets(advantages=unit_spread(advantages, mask) if advantage.whiten else advantages, usable=usable)
        assert responses.values is not None
        advantages, returns = gae(
            rewards, responses.values, mask, gamma=advantage.gamma, gae_lambda=advantage.gae_lambda
        )
        whitened = whiten(advantages, mask) if advantage.whiten else advantages
        return Targets(advantages=whitened, returns=returns, usable=usable)

    @abstractmethod
    def loss(self, policy_logprobs: Tensor, responses: Responses, advantages: Tensor) -> Loss:
        """Of (B, T) log-probs and advantages, with metrics beside it."""

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
