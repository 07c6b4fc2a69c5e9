"""All that a run must remember to go on as if it had never stopped, besides the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from apa_cli.algorithms import Objective, RunningMoments, Targets, make_objective
from apa_cli.config.schema import ObjectiveConfig, TrainConfig
from apa_cli.data.prompts import PromptStream
from apa_cli.evaluation.judge import Judgement
from apa_cli.models.roles import Models
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.tracking.samples import Sample
from apa_cli.training.optimizer import make_optimizer
from apa_cli.training.random_states import RandomStates
from apa_cli.training.steward.health import Health
from apa_cli.training.update import Progress


@dataclass(frozen=True, kw_only=True)
class RolloutStart:
    """Data position, score moments and random states before a rollout: nothing else changes until it is complete."""

    prompts: dict[str, Any]
    moments: dict[str, Any]
    random: RandomStates


@dataclass(kw_only=True)
class Work:
    """The iteration under way, from its complete rollout on."""

    trajectory: Trajectory
    targets: Targets
    metrics: dict[str, float]  # of the rollout
    samples: list[Sample]  # for samples.jsonl
    progress: Progress = field(default_factory=Progress)
    skipped: int = 0  # minibatches left out so far
    stepping: bool = False  # inside an optimizer step: weights and this record do not agree
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, of this iteration


@dataclass(kw_only=True)
class TrainingState:
    iteration: int  # finished iterations; the learning-rate schedule is a function of it
    optimizer: torch.optim.Optimizer
    prompts: PromptStream  # knows its epoch and position
    moments: RunningMoments  # of all scores so far
    objective: Objective  # whose λ or β may be steered
    health: Health
    initial: Judgement | None = None  # of the policy that training started from, to compare with
    start: RolloutStart | None = None  # while a rollout is made
    work: Work | None = None  # from then to the end of the iteration
    seconds: float = 0.0  # that earlier starts of this run took

    @property
    def position(self) -> tuple[int, int, int]:
        """How far training has come: finished iterations, and passes and rows of the one under way."""
        progress = self.work.progress if self.work else Progress()
        return self.iteration, progress.epochs, progress.rows

    def scalars(self) -> dict[str, Any]:
        """The part that is numbers, ready for JSON."""
        return {
            "iteration": self.iteration,
            "prompts": self.start.prompts if self.start else self.prompts.state_dict(),
            "moments": self.start.moments if self.start else dict(self.moments.state_dict()),
            "adaptive_kl": self.objective.knob.state_dict(),
            "health": self.health.state_dict(),
            "seconds": self.seconds,
        }

    def random_states(self) -> RandomStates:
        """Those to go on with."""
        return self.start.random if self.start else RandomStates.capture()

    def load_scalars(self, saved: dict[str, Any]) -> None:
        self.iteration = saved["iteration"]
        self.prompts.load_state_dict(saved["prompts"])
        self.moments.load_state_dict(saved["moments"])
        self.health.load_state_dict(saved["health"])
        self.seconds = saved.get("seconds", 0.0)
        self.objective.knob.load_state_dict(saved["adaptive_kl"])


def initial_state(config: TrainConfig, models: Models, prompts: PromptStream) -> TrainingState:
    return TrainingState(
        iteration=0,
        optimizer=make_optimizer(models, config.optimizer),
        prompts=prompts,
        moments=RunningMoments(),
        objective=objective_of(config.objective),
        health=Health.at_start(config.training),
    )


def objective_of(config: ObjectiveConfig) -> Objective:
    """The objective that the configuration names, with its defaults in place of null."""
    return make_objective(config.name, {**asdict(config), **config.resolved})
