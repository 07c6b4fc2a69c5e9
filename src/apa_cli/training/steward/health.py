"""Troubles that a run keeps count of: skipped minibatches, missing scores, a lowered token budget, crossed limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apa_cli.config.schema import TrainingConfig
from apa_cli.errors import DivergedError
from apa_cli.training.steward.guards import Guards
from apa_cli.training.steward.memory import TokenBudget


@dataclass(kw_only=True)
class Skips:
    """Counts minibatches skipped in a row, across iterations. At `limit` the run stops."""

    limit: int
    in_a_row: int = 0

    def passed(self) -> None:
        """A minibatch was used."""
        self.in_a_row = 0

    def skipped(self, culprit: str, setting: str) -> None:
        """A minibatch was skipped because of `culprit`. Raises DivergedError at the limit.

        This resets the count, so that a resumed run has as many tries again.
        """
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            count, self.in_a_row = self.in_a_row, 0
            raise DivergedError(culprit, count, setting)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row = state["in_a_row"]


@dataclass(kw_only=True)
class Health:
    skips: Skips
    budget: TokenBudget
    guards: Guards
    unscored: int = 0  # iterations in a row in which no response had a score

    @classmethod
    def at_start(cls, config: TrainingConfig) -> Health:
        return cls(
            skips=Skips(limit=config.max_skipped),
            budget=TokenBudget(configured=config.microbatch_tokens),
            guards=Guards(config.stop_if),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "skips": self.skips.state_dict(),
            "budget": self.budget.state_dict(),
            "guards": self.guards.state_dict(),
            "unscored": self.unscored,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skips.load_state_dict(state["skips"])
        self.budget.load_state_dict(state["budget"])
        self.guards.load_state_dict(state["guards"])
        self.unscored = state.get("unscored", 0)
