"""End a run: last checkpoint, final/, plots, report and summary.json, or as much of it as can be saved."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from apa_cli.checkpoints.export import export_final
from apa_cli.checkpoints.ownership import RUN, RUN_ENDS, check_free, record
from apa_cli.checkpoints.store import DISK_ERRORS
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import shown
from apa_cli.errors import SaveError
from apa_cli.evaluation.judge import Judgement
from apa_cli.files import json_value, write_text
from apa_cli.runs.folders import SUMMARY_FILE
from apa_cli.tracking.report import Outcome, Summary
from apa_cli.tracking.samples import SamplePair
from apa_cli.training.loop import Run, judge
from apa_cli.training.state import TrainingState


def save_what_there_is(run: Run, state: TrainingState) -> None:
    """Save a checkpoint of a run that ends early, unless nothing is new or an optimizer step was interrupted."""
    if run.checkpoints.holds(run.snapshot(state)):
        return
    if state.work is not None and state.work.stepping:
        run.tracker.warn("stopped inside an optimizer step: nothing newer than the last checkpoint can be saved")
        return
    run.tracker.phase("save")
    try:
        saved = run.checkpoints.save(run.snapshot(state))
        place = saved or run.checkpoints.save_elsewhere(run.snapshot(state))
    except Exception as error:  # the error that ended the run matters more
        run.tracker.warn(f"no checkpoint could be saved ({type(error).__name__}: {error})")
        return
    if place is not None:
        run.tracker.note(f"saved; continue with resume={shown(str(run.checkpoints.run_dir if saved else place))}")


def conclude(run: Run, state: TrainingState, after: Judgement | None, started: float) -> Summary:
    """Write final/, plots and report. Raises SaveError if the run's folder cannot hold the end of training."""
    config, run_dir = run.config, run.checkpoints.run_dir
    if not run.checkpoints.holds(run.snapshot(state)) and (
        run.checkpoints.failure or not run.checkpoints.save(run.snapshot(state))
    ):
        raise _save_failed(run, state)
    check_free(run_dir, RUN, RUN_ENDS, remedy=f"continue elsewhere: resume={shown(str(run_dir))} output_dir=NEW")
    if after is None and state.initial is not None:  # stopped between the last iteration and here
        after = judge(run, state, state.iteration, log=False)
    run.tracker.phase("save")
    judged = (state.initial, after) if state.initial is not None and after is not None else None
    before_metrics, after_metrics = (judged[0].metrics, judged[1].metrics) if judged else ({}, {})
    try:
        record(run_dir, RUN, RUN_ENDS)
        done = replace(config, training=replace(config.training, iterations=state.iteration))
        critic = run.learner.models.value if config.value.keep else None
        final = export_final(run.learner.models.policy, run_dir / "final", done, before_metrics, after_metrics, critic)
    except DISK_ERRORS as error:
        run.checkpoints.failure = str(error)
        raise _save_failed(run, state) from error
    summary = replace(
        _summary(done, run, final, judged, state.seconds + time.perf_counter() - started),
        stopped=state.health.guards.fired,
    )
    run.tracker.finish(summary)
    return summary


def _save_failed(run: Run, state: TrainingState) -> SaveError:
    """Why the last save failed, and where the state is saved instead."""
    rescue = run.checkpoints.save_elsewhere(run.snapshot(state))
    kept = f"its state is kept in {rescue}: resume={rescue}" if rescue else "no other place took its state"
    return SaveError(f"the end of training could not be saved ({run.checkpoints.failure}); {kept}")


def _summary(
    config: TrainConfig, run: Run, final: Path, judged: tuple[Judgement, Judgement] | None, seconds: float
) -> Summary:
    before, after = judged or (None, None)
    pairs = []
    if before is not None and after is not None:
        pairs = [
            SamplePair(prompt=b.prompt, before=b.response, after=a.response, score_before=b.score, score_after=a.score)
            for b, a in zip(before.responses[:2], after.responses[:2], strict=True)
        ]
        outcomes = [Outcome.from_evaluation(judgement.metrics) for judgement in (before, after)]
        measured_on = "held-out prompts"
    else:
        rows = run.tracker.metrics()
        outcomes = [Outcome.from_rollout(row) for row in (rows[0], rows[-1])]
        measured_on = "the first and the last rollout"
    return Summary(
        before=outcomes[0],
        after=outcomes[1],
        samples=pairs,
        measured_on=measured_on,
        iterations=config.training.iterations,
        seconds=seconds,
        run_dir=run.checkpoints.run_dir,
        final_dir=final,
    )


def write_summary(run_dir: Path, summary: Summary) -> None:
    """Write summary.json, which marks the run as finished, so that a sweep does not repeat it."""
    facts: dict[str, Any] = {
        "iterations": summary.iterations,
        "seconds": summary.seconds,
        "measured_on": summary.measured_on,
        "stopped": summary.stopped,
    }
    outcomes = json_value({"before": asdict(summary.before), "after": asdict(summary.after)})
    write_text(run_dir / SUMMARY_FILE, json.dumps({**facts, **outcomes}, indent=2) + "\n")
