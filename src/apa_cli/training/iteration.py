"""One iteration of RLHF: prompts → responses → scores → targets → update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apa_cli.algorithms import Targets, equal_groups, explained_variance
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import PromptBatch
from apa_cli.models.roles import Models
from apa_cli.rewards.scorers import Scorers
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.sources import Source
from apa_cli.rollouts.statistics import trajectory_metrics
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.tracking.samples import Sample
from apa_cli.training.dynamic_sampling import replace_equal_groups
from apa_cli.training.optimizer import schedule_learning_rate
from apa_cli.training.state import TrainingState, Work
from apa_cli.training.targets import length_penalties, shape_scores
from apa_cli.training.update import update


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What an iteration works with, besides the state that it changes."""

    config: TrainConfig
    models: Models
    source: Source
    scorers: Scorers
    reference_scores: Callable[[PromptBatch], Tensor] | None = None  # (B, S) of the initial policy's responses


def iterate(learner: Learner, state: TrainingState, attendant: Attendant) -> dict[str, float]:
    """Collect and learn. Returns the iteration's metrics; `advance` closes it."""
    config = learner.config
    rate = schedule_learning_rate(state.optimizer, state.iteration, config)
    work = attendant.collect(lambda: collect(learner, state, attendant))
    with attendant.phase("update"):
        stats = update(
            learner.models,
            state.optimizer,
            work.trajectory,
            work.targets,
            state.objective,
            config,
            progress=work.progress,
            attendant=attendant,
            train_policy=state.iteration >= config.value.warmup_iterations,
        )
    return {**work.metrics, **stats, "optim/learning_rate": rate}


def collect(learner: Learner, state: TrainingState, attendant: Attendant) -> Work:
    """Responses to the next prompts, how likely everybody finds them, their scores, and what the update aims at."""
    config = learner.config
    prompts = next(state.prompts)
    trajectory = respond(learner, prompts, attendant)
    samples = _samples(trajectory, config.tracking.samples)
    trajectory, replaced = replace_equal_groups(
        replace(trajectory, texts=None), config, lambda count: respond(learner, state.prompts.take(count), attendant)
    )
    assert trajectory.scores is not None
    usable = trajectory.scored & trajectory.sound  # (B,)
    penalties = length_penalties(trajectory.response_mask, config.reward)  # (B,)
    shaped = shape_scores(
        trajectory.scores.float(),
        trajectory.ended,
        state.moments,
        config.objective,
        usable,
        length_penalties=penalties,
    )
    k = config.rollout.responses_per_prompt
    targets = state.objective.targets(
        trajectory,
        shaped,
        usable,
        config.advantage,
        group_size=k,
        reference_scores=learner.reference_scores(prompts).to(shaped.device) if learner.reference_scores else None,
    )
    metrics = trajectory_metrics(trajectory, penalties) | _critic_metrics(trajectory, targets) | dict(targets.metrics)
    if config.advantage.name == "group":
        metrics["rollout/equal_groups"] = equal_groups(shaped, k, usable=usable).float().mean().item()
    if config.rollout.dynamic_sampling > 0:
        metrics["rollout/replaced_groups"] = replaced
    metrics[f"objective/{state.objective.knob.key}"] = state.objective.knob.value
    return Work(trajectory=trajectory, targets=targets, metrics=metrics, samples=samples)


def respond(learner: Learner, prompts: PromptBatch, attendant: Attendant) -> Trajectory:
    """Responses to `prompts` with their scores."""
    trajectory = learner.source.collect(prompts)
    if trajectory.scores is None:
        with attendant.phase("score"):
            trajectory = score(learner.scorers, trajectory, attendant)
    attendant.scored(trajectory)
    return trajectory


def score(scorers: Scorers, trajectory: Trajectory, attendant: Attendant) -> Trajectory:
    """The trajectory with its scores, and those of each of several rewards."""
    assert trajectory.texts is not None
    texts = trajectory.texts

    def work(token_budget: int) -> dict[str, list[float]]:
        scorers.limit_tokens(token_budget)
        scored = scorers.score(texts)
        return {"": scored.scores, **scored.parts}

    lists = attendant.fit(work, trajectory.microbatches, where="scoring")
    device = trajectory.response_ids.device
    scores = {name: torch.tensor(given, dtype=torch.float64, device=device) for name, given in lists.items()}  # (B,)
    return replace(trajectory, scores=scores.pop(""), named_scores=scores)


def advance(state: TrainingState, *, steer: bool) -> None:
    """Close the iteration: λ or β moves by the KL of its responses, where there is one and the policy learns."""
    work = state.work
    assert work is not None
    if steer and not work.trajectory.logged:
        kl = work.trajectory.kl[work.trajectory.sound]  # (n,)
        if len(kl) and bool(kl.isfinite().all()):
            state.objective.steer(kl.mean().item(), len(kl))
    state.iteration += 1
    state.work = None


def _critic_metrics(trajectory: Trajectory, targets: Targets) -> dict[str, float]:
    if trajectory.values is None or targets.returns is None:
        return {}
    mask = trajectory.response_mask & targets.usable[:, None]
    return {"value/explained_variance": float(explained_variance(trajectory.values, targets.returns, mask))}


def _samples(trajectory: Trajectory, count: int) -> list[Sample]:
    """The first `count` responses, for samples.jsonl."""
    texts, scores = trajectory.texts, trajectory.scores
    assert texts is not None and scores is not None
    return [
        Sample(
            prompt=texts.prompts[row],
            response=texts.responses[row],
            score=scores[row].item(),
            kl=None if trajectory.logged else trajectory.kl[row].item(),
            parts={name: given[row].item() for name, given in trajectory.named_scores.items()},
        )
        for row in range(min(count, len(scores)))
    ]
