"""The loop: an iteration, an evaluation where one is due, a line of metrics, a checkpoint; until all are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apa_cli.checkpoints.store import CheckpointStore
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt
from apa_cli.evaluation.judge import Judgement, evaluate
from apa_cli.tracking.samples import Sample
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.iteration import Learner, advance, iterate
from apa_cli.training.reference_scores import ReferenceScores
from apa_cli.training.state import TrainingState
from apa_cli.training.state_files import Snapshot
from apa_cli.training.steward.steward import Steward


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the loop works with, besides the state that it changes."""

    learner: Learner
    steward: Steward
    held_out: Sequence[Prompt]
    tracker: Tracker
    checkpoints: CheckpointStore
    reference_scores: ReferenceScores | None = None  # of advantage.name=reference

    @property
    def config(self) -> TrainConfig:
        return self.learner.config

    def snapshot(self, state: TrainingState) -> Snapshot:
        return Snapshot(models=self.learner.models, state=state)


def training_loop(run: Run, state: TrainingState) -> Judgement | None:
    """Run what is left of all iterations. Returns the judgement after the last, None where there was none to make.

    `state` is fit to be saved at every moment at which this raises, except inside an optimizer step.
    """
    config, health, after = run.config, state.health, None
    if state.iteration == 0 and state.work is None:
        state.initial = judge(run, state, 0, initial=True)
    while state.iteration < config.training.iterations and health.guards.fired is None:
        with run.steward.iteration():
            metrics = iterate(run.learner, state, run.steward) | run.steward.metrics()
            assert state.work is not None
            iteration, samples = state.iteration + 1, state.work.samples
            guards = health.guards.after(metrics)
            due = evaluation_due(config, iteration) or guards.fired is not None
            after = judge(run, state, iteration) if due else None
            advance(state, steer=state.iteration >= config.value.warmup_iterations)
            health.guards = guards
            run.tracker.log(iteration, metrics, samples)
            save_if_due(run, state, after)
    if health.guards.fired is not None:
        run.tracker.warn(f"the run ends after {state.iteration} iterations, {health.guards.fired}")
    return after


def evaluation_due(config: TrainConfig, iteration: int) -> bool:
    """At the interval, and always after the last."""
    every = config.evaluation.every
    return iteration == config.training.iterations or (every > 0 and iteration % every == 0)


def save_if_due(run: Run, state: TrainingState, after: Judgement | None) -> None:
    """At the interval, after the last iteration, and where the evaluation is the best so far."""
    checkpoints = run.checkpoints
    improved = after is not None and checkpoints.improves(after.metrics)
    if improved or checkpoints.due(state.iteration, run.config.training.iterations):
        run.tracker.phase("save")
        saved = checkpoints.save(run.snapshot(state))
        if saved is not None and improved and after is not None:
            checkpoints.mark_best(saved, after.metrics)


def check_initial(run: Run, state: TrainingState) -> None:
    """Drop a resumed judgement of the initial policy on other prompts, with which nothing can be compared."""
    known, begins = state.initial, state.iteration == 0 and state.work is None
    if begins or not run.held_out:
        return
    if known is None or not known.opponents or [r.prompt for r in known.responses] != [p.text for p in run.held_out]:
        state.initial = None
        run.tracker.warn("the checkpoint has no evaluation of the initial policy on these prompts: no win rates")


def judge(
    run: Run, state: TrainingState, iteration: int, *, initial: bool = False, log: bool = True
) -> Judgement | None:
    """Evaluate on held-out prompts, against the `initial` policy's responses, and log it; None without prompts."""
    if not run.held_out:
        return None
    learner, opponents = run.learner, None
    if not initial:
        opponents = state.initial.opponents if state.initial is not None else []
    run.tracker.phase("evaluate")
    with run.steward.interrupts.immediate():
        judgement = run.steward.fit(
            lambda tokens: evaluate(
                learner.models, learner.scorers, run.held_out, run.config, opponents, token_budget=tokens
            ),
            lambda tokens: [range(tokens)],  # what it will sample cannot be planned yet
            where="the evaluation",
        )
    for name, key in (("reward", "eval/unscored"), ("evaluator", "eval/evaluator_unscored")):
        if key in judgement.metrics:
            count = f"{judgement.metrics[key] * len(run.held_out):.0f} of {len(run.held_out)} responses have no score"
            after = "so it is missing" if judgement.metrics[key] == 1 else "and are left out"
            run.tracker.warn(f"evaluation after iteration {iteration}: eval/{name}: {count}, {after}")
    if log:
        samples = [
            Sample(
                prompt=r.prompt, response=r.response, score=r.score, kl=r.kl, evaluator=r.evaluator, parts=r.score_parts
            )
            for r in judgement.responses[: run.config.tracking.samples]
        ]
        run.tracker.log_evaluation(iteration, judgement.metrics, samples)
    return judgement
