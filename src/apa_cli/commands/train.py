"""apa-train: compose the configuration, check it, train. Hydra's own machinery does the rest (-m, --cfg, --help).

Imports no torch: training is imported once there is a valid configuration to train.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from apa_cli import __version__
from apa_cli.checkpoints.ownership import check_run_folder, inputs_of
from apa_cli.commands.environment import command, share_the_processor
from apa_cli.commands.messages import exit_code, report_error, say, traceback_wanted
from apa_cli.commands.sweep import PROGRAM, first_choices, is_sweep, planned, sweeping
from apa_cli.config import compose, help_text, sources
from apa_cli.config.overrides import check_overrides, prepared
from apa_cli.errors import UserError
from apa_cli.files import missing_folders, remove_empty

FULL_ERROR = "HYDRA_FULL_ERROR"


@dataclass
class _Session:
    """One call of the command."""

    full_error: bool  # APA_TRACEBACK=1: tracebacks for the user's errors too
    codes: list[int] = field(default_factory=list)  # exit codes of the runs that failed
    missing: list[Path] = field(default_factory=list)  # folders that Hydra makes, and a failed start need not leave


_session: _Session | None = None


@command(PROGRAM)
def main(argv: list[str]) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 the user's to mend, 130 interrupted."""
    global _session
    share_the_processor()
    _session = session = _Session(full_error=traceback_wanted())
    try:
        _command(argv)
        return min(session.codes, default=0)  # 1 outranks 2
    finally:
        remove_empty(session.missing)
        _session = None


def _command(argv: list[str]) -> None:
    if "--version" in argv:
        print(f"{PROGRAM} {__version__}")
        return
    compose.register()
    parser = _Parser()
    arguments = parser.parse(argv)
    if arguments.help:
        print(help_text.render(), flush=True)
        return
    if arguments.cfg or arguments.info or is_sweep(arguments):
        _compose(arguments, first_choices(arguments.overrides))  # refuses code before Hydra would run it
    if not _trains(arguments):
        _hydra(arguments, parser, run_job)
        return
    assert _session is not None
    inputs: list[tuple[str, Path]] = []
    for overrides in planned(arguments):
        config = compose.to_train_config(_compose(arguments, overrides))
        _check_folder(config.output_dir)
        inputs += inputs_of(config)
        if not is_sweep(arguments) and not config.plan_only:
            check_run_folder(config)
        if config.plan_only and is_sweep(arguments):
            raise UserError("plan_only", "plans one run, and -m begins many", "leave out -m")
    if not is_sweep(arguments):
        _session.missing = missing_folders(Path(config.output_dir))
        _hydra(arguments, parser, run_job)
        return
    with sweeping(arguments, inputs, full_error=_session.full_error, codes=_session.codes) as member:
        _hydra(arguments, parser, member)


def _compose(arguments: argparse.Namespace, overrides: list[str]) -> DictConfig:
    return compose.compose_raw(
        overrides,
        name=arguments.config_name or sources.PRIMARY,
        folder=arguments.config_path,
        extra_folder=arguments.config_dir,
    )


def _hydra(arguments: argparse.Namespace, parser: _Parser, task: Callable[[DictConfig], object]) -> None:
    version.setbase(compose.VERSION_BASE)
    with _hydra_raises():
        try:
            _run_hydra(
                args=arguments,
                args_parser=parser.hydra,
                task_function=task,
                config_path=arguments.config_path or str(sources.config_dir()),
                config_name=sources.PRIMARY,
            )
        except OSError as error:  # a run's own are reported by the run: this is of the folder that Hydra makes for it
            if error.filename is None:
                raise
            raise _no_folder(str(error.filename), error.strerror) from error


def run_job(composed: DictConfig) -> None:
    """One run that is no member of a sweep, called by Hydra."""
    hydra = HydraConfig.get()
    composed.output_dir = hydra.runtime.output_dir
    try:
        config = compose.to_train_config(composed)
        from apa_cli.training.run import train

        train(config, list(hydra.overrides.task))
    except Exception as error:  # kept rather than raised: Hydra has nothing to print
        assert _session is not None
        report_error(PROGRAM, error, run_dir=Path(composed.output_dir), full=_session.full_error)
        _session.codes.append(exit_code(error))


class _Parser:
    """Hydra's parser, with overrides and options in any order and errors as UserError."""

    def __init__(self) -> None:
        self.hydra = get_args_parser()
        self.hydra.prog = PROGRAM
        self.hydra.error = self._error  # type: ignore[method-assign]

    def parse(self, argv: list[str]) -> argparse.Namespace:
        arguments, rest = self.hydra.parse_known_args(argv)
        for word in rest:
            if word.startswith("-"):
                options = [name for action in self.hydra._actions for name in action.option_strings]
                near = get_close_matches(word.split("=")[0], options, n=1)
                raise UserError(word, "unknown option", f"did you mean {near[0]}?" if near else "see apa-train --help")
        for line in check_overrides(arguments.overrides + rest):
            say(PROGRAM, line)
        arguments.overrides = prepared(arguments.overrides + rest)
        if arguments.resolve and not (arguments.cfg or arguments.help):
            raise UserError("--resolve", "says how --cfg prints", "add --cfg job")
        actions = ("run", "multirun", "cfg", "info", "shell_completion")
        given = [f"--{name.replace('_', '-')}" for name in actions if getattr(arguments, name)]
        if len(given) > 1:
            raise UserError(" ".join(given), "do different things", "keep one of them")
        if arguments.config_path and "://" not in arguments.config_path:
            arguments.config_path = os.path.abspath(arguments.config_path)
        if any(word.lstrip("+").startswith("resume=") for word in arguments.overrides):
            from apa_cli.training import resume  # reads runs, which --help need not wait for

            arguments.overrides = resume.expand(
                arguments.overrides, sweep=is_sweep(arguments), named=arguments.config_name is not None
            )
        for option in ("config_path", "config_dir"):
            folder = getattr(arguments, option)
            if folder and "://" not in folder and not os.path.isdir(folder):
                raise UserError(f"--{option.replace('_', '-')}", f"no folder {folder}", "name one that exists")
        return arguments

    def _error(self, message: str) -> NoReturn:
        raise UserError("", message, "see apa-train --help")


def _trains(arguments: argparse.Namespace) -> bool:
    other = ("hydra_help", "cfg", "info", "shell_completion", "experimental_rerun")
    return not any(getattr(arguments, name) for name in other)


def _check_folder(output_dir: str) -> None:
    """Can the run's folder be made? Asked before Hydra makes it."""
    folder = Path(output_dir).absolute()
    sources.refuse_variables(output_dir)
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
    except OSError as error:  # a name too long
        raise _no_folder(output_dir, error.strerror) from error
    if "\0" in output_dir:
        raise _no_folder(output_dir, "a NUL in its name")
    if not folder.is_dir():
        raise UserError("output_dir", f"{sources.shown(str(folder))} is a file", "name a folder: output_dir=DIR")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError("output_dir", f"no permission to write in {folder}", "name another folder: output_dir=DIR")


def _no_folder(name: str, reason: str | None) -> UserError:
    problem = f"no folder {sources.shown(name)!r} can be made: {reason}"
    return UserError("output_dir", problem, "name another: output_dir=DIR")


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra prints errors itself and exits, unless this variable is set: then they reach main."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(FULL_ERROR, None)  # a reward function may have taken it away
        else:
            os.environ[FULL_ERROR] = before


if __name__ == "__main__":
    sys.exit(main())
