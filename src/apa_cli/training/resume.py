"""Find the run and checkpoint that `resume=` names, and check that the configuration is the run's. Imports no torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apa_cli.checkpoints.find import (
    POINTERS,
    TRAINER_STATE,
    checkpoint_iteration,
    checkpoints_in,
    followed,
    named_in,
    newest_whole,
)
from apa_cli.checkpoints.manifest import check_manifest, warn_of_unlisted
from apa_cli.checkpoints.ownership import is_run
from apa_cli.config.keys import AUTO, NAMING_KEY, groups, is_component
from apa_cli.config.objectives import unread
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import quoted, shown
from apa_cli.errors import UserError
from apa_cli.runs.folders import CONFIG_FILE, SUMMARY_FILE, flat, is_finished, learnt, read_run
from apa_cli.secrets import REDACTED, redact
from apa_cli.tracking.metrics import METRICS_FILE
from apa_cli.tracking.samples import SAMPLES_FILE

KEY = "resume"
ALLOW = "resume_allow_changes"

# How a reward is requested, which does not change its scores.
_ASKING = ("timeout_seconds", "retries", "concurrency", "batch_size", "api_key_env")
_BOOKKEEPING = ("output_dir", KEY, ALLOW)
# Keys and groups that change no number of training.
_HARMLESS = (
    "plan_only",
    "tracking",
    "checkpoint",
    "evaluation.every",
    "evaluation.resamples",
    "evaluation.judge",
    *(f"{reward}.{key}" for reward in ("reward", "evaluation.reward") for key in _ASKING),
    "rollout.reference_cache",
    "training.max_skipped",
    "training.stop_if",
)
# Decided by the checkpoint's weights.
_FIXED = ("policy.adapter", "value.kind")
_COMPONENT = re.compile(r"(?<=reward\.)components\.[^.]+\.")  # its keys are those of a single reward
_ITERATIONS = "training.iterations"  # harmless if the learning rate does not depend on it


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A run to resume."""

    source: Path  # the folder of the run
    checkpoint: Path | None  # None: it was stopped before its first checkpoint and starts again
    iteration: int  # finished iterations
    changed: tuple[str, ...]  # `key before → now`
    finished: bool


def expand(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """Add the configuration and folder of the run in `resume=DIR`, unless others are named. Raises UserError."""
    value = _value(overrides)
    if value is None or value == AUTO:
        return list(overrides)
    if sweep:
        raise UserError(KEY, "names one run, and a sweep has several", f"use {KEY}={AUTO}: each run resumes on its own")
    run, _ = locate(value)
    others = [word for word in overrides if not _is(word, KEY)]
    start = []
    if not any(_is(word, "config") for word in others):
        for word in others:
            group = word.partition("=")[0]
            if group in groups():  # defaults, which the run's configuration overrides
                example = f"{NAMING_KEY.get(group, f'{group}.KEY')}=VALUE"
                raise UserError(
                    word, "selects defaults, but the run has its own configuration", f"set keys, such as {example}"
                )
        start.append(f"config={quoted(str(run / CONFIG_FILE))}")
    if not any(_is(word, "output_dir") for word in others):
        start.append(f"output_dir={quoted(str(run))}")
    return [*start, *others, f"{KEY}={quoted(str(Path(value).expanduser().absolute()))}"]


def locate(place: str) -> tuple[Path, Path | None]:
    """(run, checkpoint or None) of a run's folder or one of its checkpoints. Raises UserError."""
    folder = Path(place).expanduser().absolute()
    remedy = "give the folder of a run, or one of its checkpoints"
    if not folder.exists():
        raise UserError(KEY, f"no folder {place}", remedy)
    if (folder / CONFIG_FILE).is_file():
        return folder, None
    if folder.name == "checkpoints" and (folder.parent / CONFIG_FILE).is_file():
        return folder.parent, None
    checkpoint = followed(folder).resolve()
    if (checkpoint.parent.parent / CONFIG_FILE).is_file() and checkpoint_iteration(checkpoint) is not None:
        return checkpoint.parent.parent, checkpoint
    raise UserError(KEY, f"{place} is neither a run (no {CONFIG_FILE}) nor a checkpoint in one", remedy)


def find_resumption(config: TrainConfig, warn: Callable[[str], None]) -> Resumption | None:
    """The run to resume, or None for a new one. `warn` is told of damaged checkpoints.

    The folder of a run that has learnt nothing yet may be used again. Raises UserError before anything is changed.
    """
    run_dir = Path(config.output_dir)
    if config.resume is None:
        if is_run(run_dir) and learnt(run_dir):
            remedy = f"add {KEY}={AUTO} to resume it, or choose another folder"
            raise UserError("output_dir", f"{run_dir} already holds a run", remedy)
        return None
    source, checkpoint = (run_dir, None) if config.resume == AUTO else locate(config.resume)
    here = source.resolve() == run_dir.resolve()
    if not here and is_run(run_dir) and learnt(run_dir):
        raise UserError("output_dir", f"{run_dir} already holds another run", "choose a new folder for the branch")
    if here and not (learnt(run_dir) and (config.resume != AUTO or is_run(run_dir))):
        return None
    if here and checkpoint is not None and checkpoint != (newest := checkpoints_in(checkpoint.parent)[-1]):
        problem = f"{checkpoint.name} is not the run's newest checkpoint ({newest.name} is)"
        remedy = f"branch off from it with output_dir=NEW, or resume from the newest: {KEY}={shown(str(source))}"
        raise UserError(KEY, problem, remedy)
    if checkpoint is None:
        refused: list[str] = []
        checkpoint = newest_whole(source / "checkpoints", refused.append)
        if checkpoint is None:
            _check_can_begin_again(source, refused)
        for line in refused:
            warn(line)
    else:
        warn_of_unlisted(checkpoint, check_manifest(checkpoint, KEY), warn)
    iteration = (checkpoint_iteration(checkpoint) or 0) if checkpoint else 0
    if checkpoint is not None and not (checkpoint / TRAINER_STATE).is_dir():
        raise UserError(KEY, f"{checkpoint} has no {TRAINER_STATE}", "give another checkpoint of the run")
    if iteration > config.training.iterations:
        remedy = "raise it, or branch off from an earlier checkpoint: resume=CHECKPOINT output_dir=NEW"
        raise UserError(_ITERATIONS, f"{config.training.iterations}, but the run has done {iteration}", remedy)
    done = iteration >= config.training.iterations
    if config.resume == AUTO and not done and is_finished(source):
        done = read_run(source).summary.get("stopped") is not None  # ended early
    return Resumption(
        source=source,
        checkpoint=checkpoint,
        iteration=iteration,
        changed=_check_changes(source, config),
        finished=here and done and is_finished(source),
    )


def _check_can_begin_again(source: Path, refused: Sequence[str]) -> None:
    """Raise UserError unless the run was stopped before its first checkpoint, so that a new start repeats it."""
    run, saved = read_run(source), source / "checkpoints"
    every = run.config.get("checkpoint.every")
    traces = [name for name in (SUMMARY_FILE, "final") if (source / name).exists()]
    traces += [f"checkpoints/{name}" for name in POINTERS if named_in(saved / name) or (saved / name).is_dir()]
    if isinstance(every, int) and 0 < every < run.iterations:
        traces.append(f"metrics of {run.iterations} iterations")
    if refused or traces:
        problem = f"{shown(str(source))} has no complete checkpoint to resume from"
        problem += f": {'; '.join(refused)}" if refused else f", only {' and '.join(traces)}"
        raise UserError(KEY, problem, "to start over, choose another folder: output_dir=NEW, without resume")


def _check_changes(source: Path, config: TrainConfig) -> tuple[str, ...]:
    """The keys that differ. Raises UserError if that changes the training and resume_allow_changes is off.

    Keys that the run's version did not have are ignored.
    """
    before, now = read_run(source).config, flat(redact(asdict(config)))
    for name, value in flat(asdict(config)).items():
        if value == REDACTED:
            raise UserError(
                name, "is a secret, which the run's config.yaml does not hold", f"give it again: {name}=VALUE"
            )
    unread_now = unread(config.objective.name)
    differing = {
        name: f"{name} {_plain(before[name])} → {_plain(now[name])}"
        for name in now
        if name in before and before[name] != now[name] and name not in _BOOKKEEPING and name not in unread_now
    }
    fixed = [text for name, text in differing.items() if _among(name, _FIXED)]
    if fixed:
        remedy = "set it back, or start a new run"
        raise UserError(KEY, f"the checkpoint's weights decide this: {', '.join(fixed)}", remedy)
    different = _components(before) ^ _components(now)
    differing |= {name: f"{name} {'gone' if name in _components(before) else 'new'}" for name in sorted(different)}
    harmful = [text for name, text in differing.items() if not _is_harmless(name, config)]
    if harmful and not config.resume_allow_changes:
        raise UserError(
            KEY,
            f"the configuration is not the run's: {', '.join(harmful)}",
            f"set it back, or add {ALLOW}=true to accept the change",
        )
    return tuple(differing.values())


def _components(config: Mapping[str, Any]) -> set[str]:
    """The names of single rewards, reward.components.NAME, which only one of two configurations may have."""
    return {name.rpartition(".")[0] for name in config if is_component(name.rpartition(".")[0])}


def _is_harmless(name: str, config: TrainConfig) -> bool:
    if name == _ITERATIONS:
        return config.optimizer.schedule == "constant"
    return _among(_COMPONENT.sub("", name), _HARMLESS)


def _among(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is(override: str, key: str) -> bool:
    return override.lstrip("+").startswith(f"{key}=")


def _value(overrides: Sequence[str]) -> str | None:
    """The last `resume=` of the command line."""
    given = [word.partition("=")[2].strip("'\"") for word in overrides if _is(word, KEY)]
    return None if not given or given[-1] in ("", "null", "None") else given[-1]


def begin_from(resumption: Resumption, run_dir: Path) -> None:
    """Copy metrics and samples of the source to a branch."""
    if resumption.source.resolve() == run_dir.resolve():
        return
    for name in (METRICS_FILE, SAMPLES_FILE):
        if (resumption.source / name).is_file():
            shutil.copy(resumption.source / name, run_dir / name)
