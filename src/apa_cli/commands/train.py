"""apa-train: compose the configuration, check it, train. Hydra's own machinery does the rest (-m, --cfg, --help).

Imports no torch: training is imported once there is a valid configuration to train.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.types import RunMode
from omegaconf import DictConfig

from apa_cli import __version__
from apa_cli.config import compose, help_text, sources
from apa_cli.config.translate import translate
from apa_cli.errors import UserError

PROGRAM = "apa-train"
FULL_ERROR = "HYDRA_FULL_ERROR"
WHOLE_SWEEP = 256  # up to so many runs each is composed before the first begins


@dataclass
class _Session:
    """One call of the command."""

    full_error: bool  # HYDRA_FULL_ERROR=1: tracebacks for the user's errors too
    failures: list[Exception] = field(default_factory=list)  # of its runs
    process: int = field(default_factory=os.getpid)


_session: _Session | None = None


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 the user's to mend, 130 interrupted."""
    global _session
    _session = session = _Session(full_error=os.environ.get(FULL_ERROR) == "1")
    try:
        _command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except SystemExit as stop:  # Hydra ends --help and the like this way
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # apa-train --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report(error)
    else:
        sys.stdout.flush()
        codes = {_exit_code(error) for error in session.failures}
        return min(codes, default=0)  # 1 outranks 2
    finally:
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
    if _trains(arguments):
        for overrides in _runs(arguments):
            composed = compose.compose_raw(
                overrides,
                name=arguments.config_name or sources.PRIMARY,
                folder=arguments.config_path,
                extra_folder=arguments.config_dir,
            )
            _check_folder(compose.to_train_config(composed).output_dir)
    version.setbase(compose.VERSION_BASE)
    with _hydra_raises():
        _run_hydra(
            args=arguments,
            args_parser=parser.hydra,
            task_function=run_job,
            config_path=arguments.config_path or str(sources.config_dir()),
            config_name=sources.PRIMARY,
        )


def run_job(composed: DictConfig) -> None:
    """One run, called by Hydra: in this process, or in one that a launcher started."""
    hydra = HydraConfig.get()
    composed.output_dir = hydra.runtime.output_dir
    try:
        config = compose.to_train_config(composed)
        from apa_cli.training.run import train

        train(config, list(hydra.overrides.task))
    except Exception as error:
        if _session is None or _session.process != os.getpid():
            raise  # a launcher started this process: the command hears of it through Hydra
        # Kept rather than raised: the other runs of a sweep go on, and Hydra has nothing to print.
        run = f"run {hydra.job.num}: " if hydra.mode == RunMode.MULTIRUN else ""
        _report(error, run, composed.output_dir)
        _session.failures.append(error)


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
        arguments.overrides = sources.absolute_paths(arguments.overrides + rest)
        if arguments.resolve and not (arguments.cfg or arguments.help):
            raise UserError("--resolve", "says how --cfg prints", "add --cfg job")
        actions = ("run", "multirun", "cfg", "info", "shell_completion")
        given = [f"--{name.replace('_', '-')}" for name in actions if getattr(arguments, name)]
        if len(given) > 1:
            raise UserError(" ".join(given), "do different things", "keep one of them")
        if arguments.config_path and "://" not in arguments.config_path:
            arguments.config_path = os.path.abspath(arguments.config_path)
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


def _runs(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """The overrides of every run to check before the first begins."""
    overrides = arguments.overrides
    if not (arguments.multirun or "hydra.mode=MULTIRUN" in overrides):
        yield overrides
        return
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except Exception as error:
        compose.raise_translated(error)
    if any(override.key_or_group == "hydra/sweeper" for override in parsed) or not all(map(_listed, parsed)):
        return  # what another sweeper will try cannot be told beforehand; each run is checked as it begins
    choices = list({override.get_key_element(): _values(override) for override in parsed}.values())
    if math.prod(map(len, choices)) <= WHOLE_SWEEP:
        yield from map(list, itertools.product(*choices))
        return
    first = [values[0] for values in choices]
    for i, values in enumerate(choices):
        for value in values:
            yield [*first[:i], value, *first[i + 1 :]]


def _listed(override: Override) -> bool:
    if not override.is_sweep_override():
        return True
    return override.is_discrete_sweep() and override.value_type != ValueType.GLOB_CHOICE_SWEEP


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _check_folder(output_dir: str) -> None:
    """Can the run's folder be made? Asked before Hydra makes it."""
    folder = Path(output_dir).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UserError("output_dir", f"{sources.shown(str(folder))} is a file", "name a folder: output_dir=DIR")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError("output_dir", f"no permission to write in {folder}", "name another folder: output_dir=DIR")


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra prints errors itself and exits, unless this variable is set: then they reach main."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before


def _exit_code(error: Exception) -> int:
    return 2 if translate(error) else 1


def _report(error: Exception, run: str = "", output_dir: str | None = None) -> int:
    """One line on stderr; the traceback too where nobody else keeps it, or the user asks for it."""
    wrong = translate(error)
    log = Path(output_dir or ".") / "run.log"
    logged = output_dir is not None and log.is_file()
    if (_session and _session.full_error) or not (wrong or logged):
        traceback.print_exception(error, file=sys.stderr)
    if wrong:
        _say(f"error: {run}{wrong}")
    else:
        message = " ".join(str(error).split())
        hint = f" (traceback in {sources.shown(str(log))})" if logged else ""
        _say(f"error: {run}{type(error).__name__}{f': {message}' if message else ''}{hint}")
    return _exit_code(error)


def _say(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
