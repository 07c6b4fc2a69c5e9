"""The loop: prompts → rollout → scores → targets → update → metrics → checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from apa_cli.algorithms import explained_variance
from apa_cli.checkpoints.store import CheckpointStore
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt, PromptBatch
from apa_cli.evaluation.judge import Judgement, evaluate
from apa_cli.models.reward import FinishedResponses
from apa_cli.models.roles import Models
from apa_cli.rollouts.collect import add_passes, finished_responses
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.record import Rollout
from apa_cli.rollouts.statistics import response_kl, rollout_statistics
from apa_cli.tracking.samples import Sample
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.optimizer import learning_rate_factor, set_learning_rate
from apa_cli.training.state import TrainingState
from apa_cli.training.targets import Targets, estimate_targets, shape_scores
from apa_cli.training.update import update


@dataclass(kw_only=True)
class Stopwatch:
    """Seconds by phase of one iteration; says the phase to the tracker as it begins."""

    tracker: Tracker
    models: Models
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.tracker.phase(name)
        start = time.perf_counter()
        yield
        self.models.runtime.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self, tokens: int) -> dict[str, float]:
        total = time.perf_counter() - self.began
        return {
            "time/iteration": total,
            **{f"time/{name}": seconds for name, seconds in self.seconds.items()},
            "throughput/tokens_per_second": tokens / total,
        }


def training_loop(
    config: TrainConfig,
    models: Models,
    state: TrainingState,
    held_out: Sequence[Prompt],
    tracker: Tracker,
    checkpoints: CheckpointStore,
) -> tuple[Judgement, Judgement] | None:
    """Run all iterations. Returns the judgements before and after, None when there are no held-out prompts."""
    before = after = judge(config, models, held_out, tracker, state.iteration)
    while state.iteration < config.training.iterations:
        watch = Stopwatch(tracker=tracker, models=models)
        rate = set_learning_rate(
            state.optimizer,
            learning_rate_factor(state.iteration, config.training.iterations, config.optimizer),
        )
        prompts = next(state.prompts)
        rollout, finished = collect_rollout(config, models, prompts, watch)
        with watch.phase("score"):
            raw_scores = models.scorer(finished)
            scores = torch.tensor(raw_scores, device=models.runtime.device)  # (B,)
        with watch.phase("update"):
            targets = _targets(config, state, rollout, scores)
            stats = update(models, state.optimizer, rollout, targets, config)
        kl = response_kl(rollout)  # (B,)
        metrics = {
            "reward/mean": scores.mean().item(),
            "reward/std": scores.std(correction=0).item(),
            **rollout_statistics(rollout),
            **stats,
            "value/explained_variance": float(
                explained_variance(_values(rollout), targets.returns, rollout.response_mask)
            ),
            "optim/learning_rate": rate,
        }
        if config.objective.name == "ppo":
            metrics["objective/kl_coef"] = _kl_coef(config, state)
            if state.adaptive_kl is not None:
                state.adaptive_kl.update(kl.mean().item(), len(raw_scores))
        state.iteration += 1
        metrics |= watch.metrics(int(rollout.prompt_mask.sum() + rollout.response_mask.sum()))
        metrics["memory/peak_bytes"] = models.runtime.peak_bytes()
        last = state.iteration == config.training.iterations
        improved = None
        if held_out and (last or (config.evaluation.every and state.iteration % config.evaluation.every == 0)):
            after = judge(config, models, held_out, tracker, state.iteration, before)
            improved = after if after is not None and checkpoints.improves(after.metrics) else None
        tracker.log(state.iteration, metrics, _samples(finished, raw_scores, kl, config.tracking.samples))
        if improved is not None or checkpoints.due(state.iteration, config.training.iterations):
            tracker.phase("save")
            saved = checkpoints.save(models, state)
            if improved is not None:
                checkpoints.mark_best(saved, improved.metrics)
    return (before, after) if before is not None and after is not None else None


def collect_rollout(
    config: TrainConfig, models: Models, prompts: PromptBatch, watch: Stopwatch
) -> tuple[Rollout, FinishedResponses]:
    """Sample one response per prompt, and take the reference's and the critic's view of it."""
    with watch.phase("generate"):
        rollout = sample(models.policy, prompts, config.generation)
        finished = finished_responses(models.policy, prompts, rollout, config.generation.stop)
    with watch.phase("forward"):
        rollout = add_passes(
            rollout,
            models.policy,
            models.reference,
            models.value,
            temperature=config.generation.temperature,
            token_budget=config.training.microbatch_tokens,
            policy_pass=config.objective.name == "ppo",
        )
    return rollout, finished


def judge(
    config: TrainConfig,
    models: Models,
    held_out: Sequence[Prompt],
    tracker: Tracker,
    iteration: int,
    initial: Judgement | None = None,
) -> Judgement | None:
    """Evaluate on held-out prompts, against the initial policy's judgement, and log it; None without prompts."""
    if not held_out:
        return None
    tracker.phase("evaluate")
    judgement = evaluate(models, held_out, config, initial)
    samples = [
        Sample(prompt=r.prompt, response=r.response, score=r.score, kl=r.kl, evaluator=r.evaluator)
        for r in judgement.responses[: config.tracking.samples]
    ]
    tracker.log_evaluation(iteration, judgement.metrics, samples)
    return judgement


def _targets(config: TrainConfig, state: TrainingState, rollout: Rollout, scores: Tensor) -> Targets:
    shaped = shape_scores(scores, rollout.ended, state.moments, config.objective)
    kl_coef = _kl_coef(config, state) if config.objective.name == "ppo" else None
    return estimate_targets(rollout, shaped, config.objective, config.advantage, kl_coef=kl_coef)


def _kl_coef(config: TrainConfig, state: TrainingState) -> float:
    return state.adaptive_kl.value if state.adaptive_kl is not None else config.objective.kl_coef


def _values(rollout: Rollout) -> Tensor:
    assert rollout.values is not None
    return rollout.values


def _samples(finished: FinishedResponses, scores: Sequence[float], kl: Tensor, count: int) -> list[Sample]:
    rows = zip(finished.prompts, finished.responses, scores, kl.tolist(), strict=True)
    return [Sample(prompt=p, response=r, score=s, kl=k) for (p, r, s, k), _ in zip(rows, range(count), strict=False)]
