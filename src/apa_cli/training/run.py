"""One run from configuration to summary: what `apa-train` calls once the configuration is known to be sound."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import math
import platform
import random
import sys
import time
import warnings
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from apa_cli import __version__
from apa_cli.checkpoints.export import export_final
from apa_cli.checkpoints.files import recover, write_text
from apa_cli.checkpoints.lock import run_lock
from apa_cli.checkpoints.resume import Resumption, begin_from, find_resumption
from apa_cli.checkpoints.store import DISK_ERRORS, CheckpointStore
from apa_cli.checkpoints.training_state import resume_state
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import shown
from apa_cli.data.loading import load_prompts
from apa_cli.data.prompts import PromptStream, check_room
from apa_cli.errors import RunError, SaveError, UserError
from apa_cli.evaluation.judge import Judgement
from apa_cli.evaluation.measures import LABELS
from apa_cli.models.device import Runtime, select_runtime
from apa_cli.models.plan import check_fits
from apa_cli.models.plan_roles import make_plan, remedies
from apa_cli.models.roles import Models, load_models
from apa_cli.tracking.log import LOGGER
from apa_cli.tracking.metrics import read_metrics
from apa_cli.tracking.plan_table import memory_lines, plan_lines, plan_table, print_plan
from apa_cli.tracking.report import Outcome, SamplePair, Summary
from apa_cli.tracking.secrets import redact
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.interrupts import Interrupts
from apa_cli.training.loop import Run, judge, training_loop
from apa_cli.training.state import TrainingState, initial_state

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
QUIETLY = {"terminal": False}  # to run.log alone: the command prints the one line


def train(config: TrainConfig, overrides: list[str]) -> None:
    """Run `config` in its output_dir and leave there all that DESIGN.md's run folder holds.

    Raises UserError for what the user can mend, SaveError where the end could not be saved, Interrupted after a
    signal; the traceback of anything else is in run.log.
    """
    started = time.perf_counter()
    run_dir = Path(config.output_dir)
    runtime = select_runtime(config.device, config.precision)
    check_best_metric(config)
    if config.plan_only:
        _show_plan(config, runtime, run_dir)
        return
    with Interrupts(config.checkpoint.grace_seconds) as interrupts, run_lock(run_dir):
        if (run_dir / "checkpoints").is_dir():
            recover(run_dir / "checkpoints")
        damaged: list[str] = []
        resumption = find_resumption(config, damaged.append)
        if resumption is not None and resumption.finished:
            print(f"{run_dir}: finished before, nothing to go on with", flush=True)
            return
        if resumption is not None:
            begin_from(resumption, run_dir)
        start = resumption.iteration if resumption is not None and resumption.checkpoint is not None else None
        with Tracker(config, run_dir, start_iteration=start) as tracker:
            for line in damaged:
                tracker.warn(line)
            try:
                _write_settings(run_dir, config, overrides)
                run, state = _prepare(config, run_dir, runtime, resumption, tracker, interrupts)
                after = _train(run, state, started)
                summary = _conclude(run, state, after, started)
            except KeyboardInterrupt as interruption:
                logging.getLogger(LOGGER).info("stopped by %s", interruption or "an interrupt", extra=QUIETLY)
                raise
            except (UserError, RunError) as error:  # of the user's own code the traceback, of ours none
                logging.getLogger(LOGGER).error("stopped: %s", error, exc_info=error.__cause__, extra=QUIETLY)
                raise
            except Exception as error:
                logging.getLogger(LOGGER).error("stopped by %s", type(error).__name__, exc_info=True, extra=QUIETLY)
                raise
        write_summary(run_dir, summary)


def _prepare(
    config: TrainConfig,
    run_dir: Path,
    runtime: Runtime,
    resumption: Resumption | None,
    tracker: Tracker,
    interrupts: Interrupts,
) -> tuple[Run, TrainingState]:
    """Load models, prompts and, of a run that goes on, its state."""
    checkpoint = resumption.checkpoint if resumption is not None else None
    tracker.note(f"{config.objective.name.upper()} on {config.policy.path}, {runtime.describe()}")
    _plan(config, runtime, tracker)
    models = load_models(config, runtime, checkpoint=checkpoint)
    _write_versions(run_dir, models, tracker)
    _warn(config, models, tracker)
    prompts, held_out = load_prompts(
        config.data, models.policy.tokenizer, evaluation_prompts=config.evaluation.prompts, seed=config.seed
    )
    every = [*prompts.prompts, *held_out.prompts]
    check_room(every, max_new_tokens=config.generation.max_new_tokens, room=models.policy.room)
    tracker.note(f"training on {prompts.describe()}")
    if held_out.prompts:
        tracker.note(f"evaluating on {held_out.describe()}")
    stream = PromptStream(
        prompts.prompts,
        batch_size=config.rollout.batch_size,
        seed=config.seed,
        pad_token_id=models.policy.pad_token_id,
    )
    state = initial_state(config, models, stream)
    checkpoints = CheckpointStore(run_dir, config.checkpoint, warn=tracker.warn, metrics=tracker)
    seed_everything(config.seed)
    if resumption is not None:
        for line in resume_state(resumption, state):
            tracker.note(line)
        if checkpoint is not None:
            checkpoints.went_on_from(checkpoint, state)
    run = Run(
        config=config,
        models=models,
        held_out=held_out.prompts,
        tracker=tracker,
        checkpoints=checkpoints,
        interrupts=interrupts,
    )
    return run, state


def _show_plan(config: TrainConfig, runtime: Runtime, run_dir: Path) -> None:
    """`plan_only`: to the terminal, whether it fits or not; the folder that Hydra has made goes again."""
    with warnings.catch_warnings():  # of libraries about one another: a run sends them to run.log
        warnings.simplefilter("ignore")
        try:
            plan = make_plan(config, runtime)
        except UserError:
            raise
        except Exception as error:
            problem = f"the models cannot be planned ({type(error).__name__}: {error})"
            raise UserError("plan_only", " ".join(problem.split())[:300], "check their config.json files") from error
    print_plan(plan)
    with contextlib.suppress(OSError):  # somebody's own folder, with something in it
        run_dir.rmdir()
    doubt = check_fits(plan, remedies=remedies(config))
    if doubt:
        print(f"warning: {doubt}", file=sys.stderr)


def _plan(config: TrainConfig, runtime: Runtime, tracker: Tracker) -> None:
    """Say what will be held where, and refuse what cannot be. A model that hides its sizes is not refused."""
    try:
        plan = make_plan(config, runtime)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # if it is the user's to mend, loading says so; a model's own code may do anything
        tracker.note(f"no plan of the memory ({type(error).__name__}: {error})")
        return
    tracker.show(plan_table(plan), plan_lines(plan))
    for line in memory_lines(plan):
        tracker.note(line)
    doubt = check_fits(plan, remedies=remedies(config))
    if doubt:
        tracker.warn(doubt)


def _train(run: Run, state: TrainingState, started: float) -> Judgement | None:
    """The loop. Whatever ends it early, what was learnt is saved first."""
    earlier = state.seconds
    try:
        return training_loop(run, state)
    except BaseException:
        state.seconds = earlier + time.perf_counter() - started
        save_what_there_is(run, state)
        raise


def save_what_there_is(run: Run, state: TrainingState) -> None:
    """A checkpoint of a run that is about to end early, unless there is nothing new or the weights are in between."""
    if run.checkpoints.holds(state):
        return
    if state.work is not None and state.work.progress.stepping:
        run.tracker.warn("stopped inside an optimizer step: nothing newer than the last checkpoint can be saved")
        return
    run.tracker.phase("save")
    try:
        saved = run.checkpoints.save(run.models, state)
        place = saved or run.checkpoints.save_elsewhere(run.models, state)
    except Exception as error:  # what ended the run matters more
        run.tracker.warn(f"no checkpoint could be saved ({type(error).__name__}: {error})")
        return
    if place is not None:
        run.tracker.note(f"saved; go on with resume={shown(str(run.checkpoints.run_dir if saved else place))}")


def _conclude(run: Run, state: TrainingState, after: Judgement | None, started: float) -> Summary:
    """final/, pictures and report. Raises SaveError where the end of training cannot be kept in the run's folder."""
    config, run_dir = run.config, run.checkpoints.run_dir
    if not run.checkpoints.holds(state) and (run.checkpoints.failure or not run.checkpoints.save(run.models, state)):
        raise save_failed(run, state)
    if after is None and state.initial is not None:  # the run was stopped between its last iteration and here
        after = judge(run, state, state.iteration, log=False)
    run.tracker.phase("save")
    judged = (state.initial, after) if state.initial is not None and after is not None else None
    before_metrics, after_metrics = (judged[0].metrics, judged[1].metrics) if judged else ({}, {})
    try:
        done = replace(config, training=replace(config.training, iterations=state.iteration))
        final = export_final(run.models.policy, run_dir / "final", done, before_metrics, after_metrics)
    except DISK_ERRORS as error:
        run.checkpoints.failure = str(error)
        raise save_failed(run, state) from error
    summary = replace(
        _summary(done, run_dir, final, judged, state.seconds + time.perf_counter() - started),
        stopped=state.health.guards.fired,
    )
    run.tracker.finish(summary)
    return summary


def save_failed(run: Run, state: TrainingState) -> SaveError:
    """The reason that the last save failed, and where the state is kept all the same."""
    rescue = run.checkpoints.save_elsewhere(run.models, state)
    kept = f"its state is kept in {rescue}: resume={rescue}" if rescue else "no other place took its state"
    return SaveError(f"the end of training could not be saved ({run.checkpoints.failure}); {kept}")


def seed_everything(seed: int) -> None:
    """torch for sampling and shuffling; Python and numpy for what a reward function may draw."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def check_best_metric(config: TrainConfig) -> None:
    """Raise UserError when checkpoint.best_metric is nothing that evaluations measure."""
    metric = config.checkpoint.best_metric
    names = [f"eval/{name}" for name in LABELS]
    if metric is not None and metric not in names:
        near = difflib.get_close_matches(metric, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
        raise UserError("checkpoint.best_metric", f"{metric} is not measured", remedy)


def _summary(
    config: TrainConfig, run_dir: Path, final: Path, judged: tuple[Judgement, Judgement] | None, seconds: float
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
        rows = read_metrics(run_dir)
        outcomes = [Outcome.from_rollout(row) for row in (rows[0], rows[-1])]
        measured_on = "the first and the last rollout"
    return Summary(
        before=outcomes[0],
        after=outcomes[1],
        samples=pairs,
        measured_on=measured_on,
        iterations=config.training.iterations,
        seconds=seconds,
        run_dir=run_dir,
        final_dir=final,
    )


def write_summary(run_dir: Path, summary: Summary) -> None:
    """summary.json, whole or not at all: where it lies, the run is finished, and a sweep does not run it again."""
    facts: dict[str, Any] = {
        "iterations": summary.iterations,
        "seconds": summary.seconds,
        "measured_on": summary.measured_on,
        "stopped": summary.stopped,
    }
    outcomes = {
        when: {
            name: value if value is None or math.isfinite(value) else None for name, value in asdict(outcome).items()
        }
        for when, outcome in (("before", summary.before), ("after", summary.after))
    }
    write_text(run_dir / SUMMARY_FILE, json.dumps({**facts, **outcomes}, indent=2) + "\n")


def _warn(config: TrainConfig, models: Models, tracker: Tracker) -> None:
    generation = config.generation
    if generation.top_k or generation.top_p < 1:
        tracker.warn(
            "generation.top_k / top_p truncate sampling, while the objective's log-probs stay full-softmax: "
            "KL and ratios are those of a distribution that was not sampled from"
        )
    if not models.policy.eos_token_ids and not generation.stop:
        tracker.warn("the policy has no EOS token: every response will be max_new_tokens long")


def _write_settings(run_dir: Path, config: TrainConfig, overrides: list[str]) -> None:
    """As the run is, not how this start of it came about: what `resume` said is in overrides.yaml."""
    resolved: Any = redact(replace(config, resume=None, resume_allow_changes=False, plan_only=False))
    write_text(run_dir / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(resolved)))
    write_text(run_dir / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(redact(overrides))))


def _write_versions(run_dir: Path, models: Models, tracker: Tracker) -> None:
    """Of a run that goes on, a change is said: other versions may round differently."""
    versions = {
        "apa_cli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "peft": version("peft"),
        "device": models.runtime.describe(),
        "policy_commit": getattr(models.policy.model.config, "_commit_hash", None),
    }
    file = run_dir / "versions.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else versions
    changed = [f"{name} {before.get(name)} → {now}" for name, now in versions.items() if before.get(name) != now]
    if changed:
        tracker.warn(f"not the versions that the run began with, so its numbers may differ: {', '.join(changed)}")
    write_text(file, json.dumps(versions, indent=2) + "\n")
