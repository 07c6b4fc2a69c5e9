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
from apa_cli.data.prompts import Prompt
from apa_cli.evaluation.judge import Judgement, evaluate
from apa_cli.models.reward import FinishedResponses
from apa_cli.models.roles import Models
from apa_cli.rollouts.collect import add_passes, finished_responses
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.record import Rollout
from apa_cli.rollouts.statistics import response_kl, rollout_statistics
from apa_cli.tracking.samples import Sample
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.interrupts import Interrupts
from apa_cli.training.optimizer import learning_rate_factor, set_learning_rate
from apa_cli.training.random_states import RandomStates
from apa_cli.training.state import RolloutStart, TrainingState, Work
from apa_cli.training.targets import estimate_targets, shape_scores
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
        try:
            yield
            self.models.runtime.synchronize()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def go_on(self, seconds: dict[str, float]) -> None:
        """Take over the phases of an iteration that was interrupted."""
        self.seconds = seconds
        self.began -= sum(seconds.values())

    def metrics(self, tokens: int) -> dict[str, float]:
        total = time.perf_counter() - self.began
        return {
            "time/iteration": total,
            **{f"time/{name}": seconds for name, seconds in self.seconds.items()},
            "throughput/tokens_per_second": tokens / total,
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the loop works with, besides the state that it changes."""

    config: TrainConfig
    models: Models
    held_out: Sequence[Prompt]
    tracker: Tracker
    checkpoints: CheckpointStore
    interrupts: Interrupts


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A rollout with every pass, the texts that were scored, and their raw scores."""

    rollout: Rollout
    finished: FinishedResponses
    scores: list[float]


def training_loop(run: Run, state: TrainingState) -> Judgement | None:
    """Run what is left of all iterations. Returns the judgement after the last, None where there was none to make.

    `state` is fit to be saved at every moment at which this raises, except inside an optimizer step.
    """
    config, after = run.config, None
    if state.iteration == 0 and state.work is None:
        state.initial = judge(run, 0)
    while state.iteration < config.training.iterations:
        watch = Stopwatch(tracker=run.tracker, models=run.models)
        if state.work is not None:
            watch.go_on(state.work.seconds)
        factor = learning_rate_factor(state.iteration, config.training.iterations, config.optimizer)
        rate = set_learning_rate(state.optimizer, factor)
        collected = collect_rollout(run, state, watch) if state.work is None else None
        with run.interrupts.deferred():
            if collected is not None:
                state.work = begin_work(config, state, collected, watch)
            work = state.work
            assert work is not None
            with watch.phase("update"):
                stats = update(
                    run.models,
                    state.optimizer,
                    work.rollout,
                    work.targets,
                    config,
                    progress=work.progress,
                    after_minibatch=run.interrupts.check,
                )
            metrics = {**_metrics(config, state, work), **stats, "optim/learning_rate": rate}
            metrics |= watch.metrics(tokens=int(work.rollout.prompt_mask.sum() + work.rollout.response_mask.sum()))
            metrics["memory/peak_bytes"] = run.models.runtime.peak_bytes()
            iteration = state.iteration + 1
            after = judge(run, iteration, state.initial) if evaluation_due(config, iteration) else None
            finish_iteration(state, work)
            run.tracker.log(iteration, metrics, work.samples)
            save_if_due(run, state, after)
    return after


def collect_rollout(run: Run, state: TrainingState, watch: Stopwatch) -> Collected:
    """Sample one response per prompt, take the reference's and the critic's view of it, and score it.

    Until that is complete, `state.start` is where a checkpoint would go on from.
    """
    config, models = run.config, run.models
    state.start = RolloutStart(prompts=state.prompts.state_dict(), random=RandomStates.capture())
    prompts = next(state.prompts)
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
    with watch.phase("score"):
        scores = models.scorer(finished)
    return Collected(rollout=rollout, finished=finished, scores=scores)


def begin_work(config: TrainConfig, state: TrainingState, collected: Collected, watch: Stopwatch) -> Work:
    """What the update aims at. From here on a checkpoint keeps the work."""
    rollout, raw_scores = collected.rollout, collected.scores
    scores = torch.tensor(raw_scores, device=rollout.response_ids.device)  # (B,)
    shaped = shape_scores(scores, rollout.ended, state.moments, config.objective)
    kl_coef = _kl_coef(config, state) if config.objective.name == "ppo" else None
    targets = estimate_targets(rollout, shaped, config.objective, config.advantage, kl_coef=kl_coef)
    samples = _samples(collected.finished, raw_scores, response_kl(rollout), config.tracking.samples)
    state.start = None
    return Work(rollout=rollout, targets=targets, scores=raw_scores, samples=samples, seconds=watch.seconds)


def evaluation_due(config: TrainConfig, iteration: int) -> bool:
    """At the interval, and always after the last."""
    every = config.evaluation.every
    return iteration == config.training.iterations or (every > 0 and iteration % every == 0)


def finish_iteration(state: TrainingState, work: Work) -> None:
    if state.adaptive_kl is not None:
        state.adaptive_kl.update(response_kl(work.rollout).mean().item(), len(work.scores))
    state.iteration += 1
    state.work = None


def save_if_due(run: Run, state: TrainingState, after: Judgement | None) -> None:
    """At the interval, after the last iteration, and where the evaluation is the best so far."""
    checkpoints = run.checkpoints
    improved = after is not None and checkpoints.improves(after.metrics)
    if improved or checkpoints.due(state.iteration, run.config.training.iterations):
        run.tracker.phase("save")
        saved = checkpoints.save(run.models, state)
        if saved is not None and improved and after is not None:
            checkpoints.mark_best(saved, after.metrics)


def judge(run: Run, iteration: int, initial: Judgement | None = None, *, log: bool = True) -> Judgement | None:
    """Evaluate on held-out prompts, against the initial policy's judgement, and log it; None without prompts."""
    if not run.held_out:
        return None
    run.tracker.phase("evaluate")
    with run.interrupts.immediate():
        judgement = evaluate(run.models, run.held_out, run.config, initial)
    if log:
        samples = [
            Sample(prompt=r.prompt, response=r.response, score=r.score, kl=r.kl, evaluator=r.evaluator)
            for r in judgement.responses[: run.config.tracking.samples]
        ]
        run.tracker.log_evaluation(iteration, judgement.metrics, samples)
    return judgement


def _metrics(config: TrainConfig, state: TrainingState, work: Work) -> dict[str, float]:
    """Of the rollout."""
    scores = torch.tensor(work.scores)
    assert work.rollout.values is not None
    variance = explained_variance(work.rollout.values, work.targets.returns, work.rollout.response_mask)
    metrics = {
        "reward/mean": scores.mean().item(),
        "reward/std": scores.std(correction=0).item(),
        **rollout_statistics(work.rollout),
        "value/explained_variance": float(variance),
    }
    if config.objective.name == "ppo":
        metrics["objective/kl_coef"] = _kl_coef(config, state)
    return metrics


def _kl_coef(config: TrainConfig, state: TrainingState) -> float:
    return state.adaptive_kl.value if state.adaptive_kl is not None else config.objective.kl_coef


def _samples(finished: FinishedResponses, scores: Sequence[float], kl: Tensor, count: int) -> list[Sample]:
    rows = zip(finished.prompts, finished.responses, scores, kl.tolist(), strict=True)
    return [Sample(prompt=p, response=r, score=s, kl=k) for (p, r, s, k), _ in zip(rows, range(count), strict=False)]
