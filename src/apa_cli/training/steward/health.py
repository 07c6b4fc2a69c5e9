"""Troubles that a run keeps count of: skipped minibatches, missing scores, a lowered token budget, crossed limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from apa_cli.config.schema import StopIfConfig, TrainingConfig
from apa_cli.errors import DivergedError

_WATCHED = {  # key of training.stop_if: metric, and whether the limit is an upper one
    "kl_above": ("kl/to_init", True),
    "entropy_below": ("policy/entropy", False),
    "reward_below": ("reward/mean", False),
}


@dataclass(frozen=True, kw_only=True)
class Guards:
    """training.stop_if: each limit counts the iterations in a row beyond it, and fires at `patience`."""

    config: StopIfConfig
    beyond: Mapping[str, int] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)

    def after(self, metrics: Mapping[str, float]) -> Guards:
        """The guards one iteration later. A missing or NaN metric does not change its count."""
        values = {key: metrics.get(metric, math.nan) for key, (metric, _) in _WATCHED.items()}
        last = {key: value for key, value in values.items() if value == value}
        beyond = {key: self.beyond.get(key, 0) + 1 if self._is_beyond(key, value) else 0 for key, value in last.items()}
        return replace(self, beyond={**self.beyond, **beyond}, last={**self.last, **last})

    @property
    def fired(self) -> str | None:
        """Why the run ends, in one line, or None."""
        for key, (metric, upper) in _WATCHED.items():
            count = self.beyond.get(key, 0)
            # the limit may have changed since the run was saved
            if count >= self.config.patience and self._is_beyond(key, self.last.get(key, math.nan)):
                limit, side = getattr(self.config, key), "above" if upper else "below"
                times = f"{count} iterations in a row" if count > 1 else "one iteration"
                return f"training.stop_if.{key}: {metric} {side} {limit:g} for {times}, last {self.last[key]:.4g}"
        return None

    def _is_beyond(self, key: str, value: float) -> bool:
        limit = getattr(self.config, key)
        return limit is not None and (value > limit if _WATCHED[key][1] else value < limit)


@dataclass(kw_only=True)
class Health:
    """`tokens`: the most in a micro-batch, halved for the rest of the run whenever they do not fit."""

    config: TrainingConfig
    tokens: int
    guards: Guards
    skipped: int = 0  # minibatches in a row
    unscored: int = 0  # iterations in a row in which no response had a score

    @classmethod
    def at_start(cls, config: TrainingConfig) -> Health:
        return cls(config=config, tokens=config.microbatch_tokens, guards=Guards(config=config.stop_if))

    def skip(self, culprit: str, setting: str) -> None:
        """Count a minibatch skipped because of `culprit`. Raises DivergedError at training.max_skipped in a row.

        This resets the count, so that a resumed run has as many tries again.
        """
        self.skipped += 1
        if self.skipped >= self.config.max_skipped:
            count, self.skipped = self.skipped, 0
            raise DivergedError(culprit, count, setting)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "skips": {"in_a_row": self.skipped},
            "budget": {"configured": self.config.microbatch_tokens, "tokens": self.tokens},
            "guards": {"beyond": dict(self.guards.beyond), "last": dict(self.guards.last)},
            "unscored": self.unscored,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A token budget that was configured otherwise is not loaded."""
        self.skipped, self.unscored = state["skips"]["in_a_row"], state.get("unscored", 0)
        if state["budget"]["configured"] == self.config.microbatch_tokens:
            self.tokens = state["budget"]["tokens"]
        self.guards = replace(self.guards, **state["guards"])
