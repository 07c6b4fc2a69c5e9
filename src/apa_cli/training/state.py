"""All that a run must remember to go on as if it had never stopped, besides the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from apa_cli.algorithms import AdaptiveKLCoefficient, RunningMoments
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import PromptStream
from apa_cli.models.roles import Models
from apa_cli.training.optimizer import make_optimizer


@dataclass(kw_only=True)
class TrainingState:
    iteration: int  # finished iterations; the learning-rate schedule is a function of it
    optimizer: torch.optim.Optimizer
    prompts: PromptStream  # knows its epoch and position
    moments: RunningMoments  # of all scores so far
    adaptive_kl: AdaptiveKLCoefficient | None

    def scalars(self) -> dict[str, Any]:
        """The part that is numbers, ready for JSON."""
        return {
            "iteration": self.iteration,
            "prompts": self.prompts.state_dict(),
            "moments": dict(self.moments.state_dict()),
            "adaptive_kl": self.adaptive_kl.state_dict() if self.adaptive_kl else None,
        }

    def load_scalars(self, saved: dict[str, Any]) -> None:
        self.iteration = saved["iteration"]
        self.prompts.load_state_dict(saved["prompts"])
        self.moments.load_state_dict(saved["moments"])
        if self.adaptive_kl is not None and saved["adaptive_kl"] is not None:
            self.adaptive_kl.load_state_dict(saved["adaptive_kl"])


def initial_state(config: TrainConfig, models: Models, prompts: PromptStream) -> TrainingState:
    objective = config.objective
    adaptive = None
    if objective.name == "ppo" and objective.kl_target is not None:
        adaptive = AdaptiveKLCoefficient(objective.kl_coef, target=objective.kl_target, horizon=objective.kl_horizon)
    return TrainingState(
        iteration=0,
        optimizer=make_optimizer(models, config.optimizer),
        prompts=prompts,
        moments=RunningMoments(),
        adaptive_kl=adaptive,
    )
