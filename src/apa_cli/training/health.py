"""What a run remembers of its troubles: minibatches skipped in a row, iterations without any score, a lowered token
budget, limits being crossed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apa_cli.config.schema import TrainingConfig
from apa_cli.training.finiteness import Skips
from apa_cli.training.guards import Guards
from apa_cli.training.memory import TokenBudget


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
