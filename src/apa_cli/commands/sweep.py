"""The sweeping side of `apa-train -m`: where a sweep lies, one member of it, and the tables at its end."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, ValueType
from omegaconf import DictConfig, OmegaConf

from apa_cli.checkpoints.lock import make_folder
from apa_cli.checkpoints.ownership import SWEEP_NAMES, TABLES, check_free, check_place, record
from apa_cli.commands.environment import exit_code, one_line, report_error, say
from apa_cli.config import compose, sources
from apa_cli.config.overrides import parse
from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError

PROGRAM = "apa-train"
MOST_RUNS = 1000  # of one sweep
WHOLE_SWEEP = 256  # up to so many runs each is composed before the first begins


def is_sweep(arguments: argparse.Namespace) -> bool:
    return bool(arguments.multirun) or "hydra.mode=MULTIRUN" in arguments.overrides


def composed_with(arguments: argparse.Namespace, overrides: list[str]) -> DictConfig:
    """One run's configuration, with the options of the command line. Raises UserError."""
    return compose.compose_raw(
        overrides,
        name=arguments.config_name or sources.PRIMARY,
        folder=arguments.config_path,
        extra_folder=arguments.config_dir,
    )


@dataclass(frozen=True, kw_only=True)
class Member:
    """What Hydra calls for each run of a sweep: in the command's process, or in one that a launcher started.

    An error is noted in the run's folder rather than raised: the other runs go on, whatever the launcher or sweeper.
    """

    sweep: str  # this call of the command
    process: int  # the command's
    full_error: bool

    def __call__(self, composed: DictConfig) -> tuple[float, ...] | None:
        """(reward, KL) at the end for a sweeper that searches; None where the run failed."""
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        composed.output_dir = str(folder)
        overrides = list(hydra.overrides.task)
        config = None
        try:
            _redact_hydras_own(folder.parent)
            config = compose.to_train_config(composed)
            self._train(config, folder, overrides)
            direction = OmegaConf.to_container(OmegaConf.create(hydra.sweeper)).get("direction")  # type: ignore[union-attr]
            return _outcome(folder, reward_only=isinstance(direction, str))
        except Exception as error:
            from apa_cli.runs.members import note_failure

            report_error(PROGRAM, error, run=folder.name, run_dir=folder, full=self.full_error)
            note_failure(
                folder, one_line(error), code=exit_code(error), sweep=self.sweep, overrides=overrides, config=config
            )
            return None

    def _train(self, config: TrainConfig, folder: Path, overrides: list[str]) -> None:
        from apa_cli.runs.members import alone, done_before

        elsewhere = os.getpid() != self.process
        with alone(folder):
            if done_before(folder, config):
                print(f"{folder.name}: already finished, not run again", flush=True)
                return
            if elsewhere and config.tracking.console == "auto":
                config.tracking.console = "quiet"  # several runs share one terminal
            if config.tracking.console != "quiet":
                print(f"{folder.name}", flush=True)
            started = time.perf_counter()
            from apa_cli.training.run import train

            train(config, overrides)
            if config.tracking.console == "quiet":
                print(f"{folder.name}: finished in {time.perf_counter() - started:.0f} s", flush=True)


def _outcome(folder: Path, *, reward_only: bool) -> tuple[float, ...] | None:
    from apa_cli.runs.folders import read_run

    run = read_run(folder)
    evaluator, reward, kl = (run.last(f"eval/{name}") for name in ("evaluator", "reward", "kl"))
    judged = reward if evaluator is None else evaluator
    if judged is None or kl is None:
        return None
    return (judged,) if reward_only else (judged, kl)


@contextmanager
def sweeping(
    arguments: argparse.Namespace, inputs: Sequence[tuple[str, Path]], *, full_error: bool, codes: list[int]
) -> Iterator[Member]:
    """Settle the sweep's folder beforehand; afterwards, however it ends, write its tables and collect exit codes."""
    folder = _settle_folder(arguments)
    check_place(folder, TABLES, inputs)
    check_free(folder, TABLES, SWEEP_NAMES)
    make_folder(folder)
    record(folder, TABLES, SWEEP_NAMES)
    member = Member(sweep=uuid.uuid4().hex, process=os.getpid(), full_error=full_error)
    print(f"sweep in {sources.shown(str(folder))}", flush=True)
    try:
        yield member
    finally:
        try:
            _redact_hydras_own(folder)
            codes += _conclude(folder, member.sweep)
        except Exception as error:
            codes.append(report_error(PROGRAM, error, run="tables of the sweep", full=full_error))


def _redact_hydras_own(sweep: Path) -> None:
    """Hydra's sweeper has written the composition as it is, passwords in addresses included."""
    import yaml

    from apa_cli.files import write_text
    from apa_cli.secrets import redact

    file = sweep / "multirun.yaml"
    if file.is_file():
        with suppress(OSError, yaml.YAMLError):  # another member does it
            composed = yaml.safe_load(file.read_text("utf-8"))
            if (redacted := redact(composed)) != composed:
                write_text(file, yaml.safe_dump(redacted, allow_unicode=True, sort_keys=False))


def _conclude(folder: Path, sweep: str) -> list[int]:
    from apa_cli.runs.folders import FAILED, members, read_run
    from apa_cli.runs.members import failures_of

    runs = []
    for place in members(folder):
        try:
            runs.append(read_run(place))
        except UserError as error:
            say(PROGRAM, f"left out of the tables: {error}")
    failures = failures_of(folder, sweep)
    if not (runs or failures):
        return []  # nothing began
    from apa_cli.runs.tables import Overview, terminal_lines, write_tables

    known = {run.name for run in runs if run.status == FAILED}
    conflicts = [(name, reason) for name, reason, _ in failures if name not in known]
    overview = Overview(title=f"Sweep {folder.name}", folder=folder, runs=runs, conflicts=conflicts)
    tables, pictures = write_tables(overview, "sweep")
    print("\n".join(terminal_lines(overview, [*tables, *pictures])), flush=True)
    return [code for *_, code in failures]


def _settle_folder(arguments: argparse.Namespace) -> Path:
    """One folder for all members: composed anew in each, `${now:...}` would scatter them. Tells Hydra of it."""
    given = [word for word in arguments.overrides if word.lstrip("+").startswith("hydra.sweep.dir=")]
    if given:
        return Path(os.path.abspath(given[-1].partition("=")[2].strip("'\"")))
    composed = composed_with(arguments, first_choices(arguments.overrides))
    plain = OmegaConf.load(sources.config_dir() / f"{sources.PRIMARY}.yaml")
    if _unresolved(composed) == _unresolved(plain):
        folder = Path(f"sweeps/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}").absolute()
    else:
        folder = Path(str(composed.output_dir)).absolute()
    arguments.overrides.append(f"hydra.sweep.dir={sources.quoted(str(folder))}")
    return folder


def _unresolved(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False)["output_dir"]  # type: ignore[call-overload,index]


def planned(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """The overrides of every run to check before the first begins."""
    overrides = arguments.overrides
    if not is_sweep(arguments):
        yield overrides
        return
    parsed = _parsed(overrides)
    for override in parsed:
        if override.key_or_group == "output_dir" and override.is_sweep_override():
            raise UserError("output_dir", "several folders for one sweep", "give one: each run gets a folder inside it")
    if any(override.key_or_group == "hydra/sweeper" for override in parsed) or not all(map(_listed, parsed)):
        return  # what another sweeper will try cannot be told beforehand; each run is checked as it begins
    if math.prod(map(_count, parsed)) > MOST_RUNS:
        return  # a sweeper's that searches
    choices = list({override.get_key_element(): list(_values(override)) for override in parsed}.values())
    if math.prod(map(len, choices)) <= WHOLE_SWEEP:
        yield from map(list, itertools.product(*choices))
        return
    first = [values[0] for values in choices]
    for i, values in enumerate(choices):
        for value in values:
            yield [*first[:i], value, *first[i + 1 :]]


def first_choices(overrides: list[str]) -> list[str]:
    """One run of the sweep, without the values that only a sweeper can tell."""
    return [next(_values(override)) for override in _parsed(overrides) if _listed(override)]


def _parsed(overrides: list[str]) -> list[Override]:
    parsed = [parse(word) for word in overrides]
    runs = 1
    for override in parsed:
        runs *= (count := _count(override))
        if not count:
            problem = f"{override.input_line}: no value is in it"
            raise UserError(override.key_or_group, problem, "begin a range below its end, such as range(1,3)")
    if runs > MOST_RUNS and not any("optuna" in (override.input_line or "") for override in parsed):
        raise UserError("-m", f"{runs:,} runs, and {MOST_RUNS:,} are the most of one sweep", "give fewer values")
    return parsed


def _count(override: Override) -> int:
    """How many values it has, without writing them out; 1 where only a sweeper can tell."""
    values = override.value()
    if isinstance(values, RangeSweep):
        assert values.start is not None
        assert values.stop is not None
        if values.step == 0:
            raise UserError(override.key_or_group, f"{override.input_line}: a step of 0", "give another")
        return max(0, math.ceil((values.stop - values.start) / values.step))
    return len(values.list) if isinstance(values, ChoiceSweep) else 1


def _listed(override: Override) -> bool:
    if not override.is_sweep_override():
        return True
    return override.is_discrete_sweep() and override.value_type != ValueType.GLOB_CHOICE_SWEEP


def _values(override: Override) -> Iterator[str]:
    if not override.is_sweep_override():
        yield override.input_line or ""
        return
    for value in override.sweep_string_iterator():
        yield f"{override.get_key_element()}={value}"
