"""All that a run must remember to go on as if it had never stopped, besides the weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from apa_cli.algorithms import AdaptiveKLCoefficient, RunningMoments, SteeredLambda
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import PromptStream
from apa_cli.evaluation.judge import Judgement
from apa_cli.models.roles import Models
from apa_cli.rollouts.record import Rollout
from apa_cli.tracking.samples import Sample
from apa_cli.training.health import Health
from apa_cli.training.optimizer import make_optimizer
from apa_cli.training.random_states import RandomStates
from apa_cli.training.targets import Targets
from apa_cli.training.update import UpdateProgress


@dataclass(frozen=True, kw_only=True)
class RolloutStart:
    """Data position and random states before a rollout: nothing else changes until it is complete."""

    prompts: dict[str, Any]
    random: RandomStates


@dataclass(kw_only=True)
class Work:
    """The iteration under way, from its complete rollout on."""

    rollout: Rollout
    targets: Targets
    scores: list[float]  # raw, one a response
    samples: list[Sample]  # for samples.jsonl
    reward_metrics: dict[str, float] = field(default_factory=dict)  # of several rewards, and of the length penalty
    progress: UpdateProgress = field(default_factory=UpdateProgress)
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, of this iteration


@dataclass(kw_only=True)
class TrainingState:
    iteration: int  # finished iterations; the learning-rate schedule is a function of it
    optimizer: torch.optim.Optimizer
    prompts: PromptStream  # knows its epoch and position
    moments: RunningMoments  # of all scores so far
    adaptive_kl: AdaptiveKLCoefficient | SteeredLambda | None  # of ppo; of apa and awr; None where fixed
    health: Health
    initial: Judgement | None = None  # of the policy that training started from, to compare with
    start: RolloutStart | None = None  # while a rollout is made
    work: Work | None = None  # from then to the end of the iteration
    seconds: float = 0.0  # that earlier starts of this run took

    @property
    def position(self) -> tuple[int, int, int]:
        """How far training has come: finished iterations, and passes and rows of the one under way."""
        progress = self.work.progress if self.work else UpdateProgress()
        return self.iteration, progress.epochs, progress.rows

    def steer(self, kl: float, responses: int) -> None:
        """Move λ or β, where it is steered, after `responses` responses whose mean KL was `kl` nats."""
        if isinstance(self.adaptive_kl, SteeredLambda):
            self.adaptive_kl.update(kl)
        elif self.adaptive_kl is not None:
            self.adaptive_kl.update(kl, responses)

    def steered(self, config: TrainConfig) -> TrainConfig:
        """`config` with λ or β as it is now."""
        if self.adaptive_kl is None:
            return config
        value, objective = self.adaptive_kl.value, config.objective
        is_lambda = isinstance(self.adaptive_kl, SteeredLambda)
        now = replace(objective, kl_lambda=value) if is_lambda else replace(objective, kl_coef=value)
        return replace(config, objective=now)

    def scalars(self) -> dict[str, Any]:
        """The part that is numbers, ready for JSON."""
        return {
            "iteration": self.iteration,
            "prompts": self.start.prompts if self.start else self.prompts.state_dict(),
            "moments": dict(self.moments.state_dict()),
            "adaptive_kl": self.adaptive_kl.state_dict() if self.adaptive_kl else None,
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
        if self.adaptive_kl is not None and saved["adaptive_kl"] is not None:
            self.adaptive_kl.load_state_dict(saved["adaptive_kl"])


def initial_state(config: TrainConfig, models: Models, prompts: PromptStream) -> TrainingState:
    objective = config.objective
    adaptive: AdaptiveKLCoefficient | SteeredLambda | None = None
    if objective.kl_target is not None:
        if objective.name == "ppo":
            target, horizon = objective.kl_target, objective.kl_horizon
            adaptive = AdaptiveKLCoefficient(objective.kl_coef, target=target, horizon=horizon)
        else:
            adaptive = SteeredLambda(
                objective.own_lambda,
                target=objective.kl_target,
                gain=objective.kl_gain,
                damping=objective.kl_damping,
                floor=objective.lambda_floor,
                ceiling=objective.kl_lambda_max,
            )
    return TrainingState(
        iteration=0,
        optimizer=make_optimizer(models, config.optimizer),
        prompts=prompts,
        moments=RunningMoments(),
        adaptive_kl=adaptive,
        health=Health.at_start(config.training),
    )
