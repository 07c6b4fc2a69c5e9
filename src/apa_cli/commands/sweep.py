"""The sweeping side of `apa-train -m`: where a sweep lies, one member of it, and the tables at its end."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ValueType
from omegaconf import DictConfig, OmegaConf

from apa_cli.checkpoints.lock import make_folder
from apa_cli.checkpoints.ownership import SWEEP_NAMES, TABLES, check_free, check_place, record
from apa_cli.commands.environment import exit_code, one_line, report_error, say
from apa_cli.config import compose, sources
from apa_cli.config.overrides import parse
from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError

PROGRAM = "apa-train"
MOST_CHECKED = 256  # runs that are composed before the first begins


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

        with alone(folder):
            if done_before(folder, config):
                print(f"{folder.name}: already finished, not run again", flush=True)
                return
            if os.getpid() != self.process and config.tracking.console == "auto":
                config.tracking.console = "quiet"  # several runs share one terminal
            quiet, started = config.tracking.console == "quiet", time.perf_counter()
            if not quiet:
                print(folder.name, flush=True)
            from apa_cli.training.run import train

            train(config, overrides)
            if quiet:
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
    folder: Path, inputs: Sequence[tuple[str, Path]], *, full_error: bool, codes: list[int]
) -> Iterator[Member]:
    """Settle the sweep's folder beforehand; afterwards, however it ends, write its tables and collect exit codes."""
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
    from apa_cli.runs.tables import Overview, terminal_lines, write_tables

    runs = []
    for place in members(folder):
        try:
            runs.append(read_run(place))
        except UserError as error:
            say(PROGRAM, f"left out of the tables: {error}")
    failures = failures_of(folder, sweep)
    if not (runs or failures):
        return []  # nothing began
    known = {run.name for run in runs if run.status == FAILED}
    conflicts = [(name, reason) for name, reason, _ in failures if name not in known]
    overview = Overview(title=f"Sweep {folder.name}", folder=folder, runs=runs, conflicts=conflicts)
    tables, pictures = write_tables(overview, "sweep")
    print("\n".join(terminal_lines(overview, [*tables, *pictures])), flush=True)
    return [code for *_, code in failures]


def sweep_folder(overrides: Sequence[str]) -> tuple[Path, list[str]]:
    """One folder for all members, and what tells Hydra: composed anew in each, `${now:...}` would scatter them."""
    given = [word for word in overrides if word.lstrip("+").startswith("hydra.sweep.dir=")]
    if given:
        return Path(os.path.abspath(given[-1].partition("=")[2].strip("'\""))), []
    composed = compose.compose_raw(first_choices(overrides))
    folder = Path(f"sweeps/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}").absolute()
    default = OmegaConf.load(sources.config_dir() / f"{sources.PRIMARY}.yaml")._get_node("output_dir")  # type: ignore[arg-type]
    if composed._get_node("output_dir")._value() != default._value():  # type: ignore[union-attr]
        folder = Path(str(composed.output_dir)).absolute()
    return folder, [f"hydra.sweep.dir={sources.quoted(str(folder))}"]


def planned(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of the runs to check before the first begins. Of another sweeper nothing can be told beforehand."""
    choices = {}
    for word in overrides:
        override, values = parse(word), _values(word)
        if override.key_or_group == "output_dir" and override.is_sweep_override():
            raise UserError("output_dir", "several folders for one sweep", "give one: each run gets a folder inside it")
        if values is None or override.key_or_group == "hydra/sweeper":
            return
        choices[override.get_key_element()] = values
    yield from map(list, itertools.islice(itertools.product(*choices.values()), MOST_CHECKED))


def first_choices(overrides: Sequence[str]) -> list[str]:
    """One run of the sweep, without the values that only a sweeper can tell."""
    return [values[0] for word in overrides if (values := _values(word)) is not None]


def _values(word: str) -> list[str] | None:
    """An override for each value; None where only a sweeper can tell them."""
    override = parse(word)
    if not override.is_sweep_override():
        return [word]
    if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return None
    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    if not values:
        remedy = "begin a range below its end, such as range(1,3)"
        raise UserError(override.key_or_group, f"{word}: no value is in it", remedy)
    return values
