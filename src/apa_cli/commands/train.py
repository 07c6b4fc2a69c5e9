"""apa-train, and `train` for Python: compose the configuration, check it, train.

Hydra runs what is asked for besides one run: -m, --cfg, --info, shell completion. Imports no torch: training is
imported once there is a valid configuration to train.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from apa_cli import __version__
from apa_cli.checkpoints.ownership import check_run_folder, inputs_of
from apa_cli.commands.environment import (
    check_folder,
    command,
    report_error,
    say,
    share_the_processor,
    traceback_wanted,
)
from apa_cli.commands.sweep import PROGRAM, first_choices, planned, sweep_folder, sweeping
from apa_cli.config import compose, help_text, sources
from apa_cli.config.keys import nearest
from apa_cli.config.overrides import prepared, repeated
from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from apa_cli.tracking.report import Summary


def train(config: str | Path | None = None, *overrides: str) -> Summary:
    """Train as `apa-train config=CONFIG OVERRIDES...` does, and return what the run came to.

    `config` is a YAML file or the name of a recipe; None is the built-in task, and an override may stand in its place.
    The run writes its folder and its lines on the terminal as the command does (`tracking.console=quiet`: none).
    Signals keep their handlers: Ctrl-C, in the main thread, is a KeyboardInterrupt after a last checkpoint.

    Returns the run's folder (`run_dir`, and the policy in `final_dir`), `iterations`, `stopped` (why it ended early,
    or None), and `before` and `after`: reward, KL and the like of the policy at both ends.

    Raises UserError for what the user can mend, RunError for what ends a run otherwise.

    >>> from apa_cli import train
    >>> run = train("mine.yaml", "objective.kl_lambda=0.1", "output_dir=runs/mine")  # doctest: +SKIP
    >>> run.after.reward - run.before.reward, run.after.kl  # doctest: +SKIP
    """
    words = list(overrides)
    if config is not None:
        is_override = "=" in str(config) and not Path(config).is_file()
        words.insert(0, str(config) if is_override else f"config={config}")
    for line in repeated(words):
        warnings.warn(line, stacklevel=2)
    words = _resumed(prepared(words), sweep=False)
    settings = compose.compose_train(words)
    if settings.plan_only:
        raise UserError("plan_only", "shows a plan, and trains nothing", "leave it out, or run apa-train")
    _run(settings, words, signals=False)
    return _summary(Path(settings.output_dir))


def _run(config: TrainConfig, words: Sequence[str], *, signals: bool) -> None:
    """One run in this process."""
    check_folder(config.output_dir)
    config.output_dir = os.path.abspath(config.output_dir)
    if not config.plan_only:
        check_run_folder(config)
    from apa_cli.training.run import train as train_run

    train_run(
        config, [word for word in words if not word.lstrip("+~").startswith(("hydra.", "hydra/"))], signals=signals
    )


def _summary(run_dir: Path) -> Summary:
    from apa_cli.runs.folders import SUMMARY_FILE
    from apa_cli.tracking.report import Outcome, Summary

    facts = json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
    before, after = (Outcome(**facts.pop(when)) for when in ("before", "after"))
    return Summary(before=before, after=after, **facts, run_dir=run_dir, final_dir=run_dir / "final")


@command(PROGRAM)
def main(argv: list[str]) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 the user's to mend, 130 interrupted."""
    share_the_processor()
    if "--version" in argv:
        print(f"{PROGRAM} {__version__}")
        return 0
    compose.register()
    arguments = _parsed(argv)
    if arguments.help:
        print(help_text.render(), flush=True)
        return 0
    full_error, words = traceback_wanted(), arguments.overrides
    if any(getattr(arguments, name) for name in ("hydra_help", "cfg", "info", "shell_completion")):
        if arguments.cfg or arguments.info:
            compose.compose_raw(first_choices(words))  # refuses code before Hydra would run it
        _hydra(arguments, lambda config: None)
        return 0
    if not _is_sweep(arguments):
        config = compose.compose_train(words)
        try:
            _run(config, words, signals=True)
        except Exception as error:
            return report_error(PROGRAM, error, run_dir=Path(config.output_dir), full=full_error)
        return 0
    inputs: list[tuple[str, Path]] = []
    for overrides in planned(words):
        config = compose.compose_train(overrides)
        check_folder(config.output_dir)
        inputs += inputs_of(config)
        if config.plan_only:
            raise UserError("plan_only", "plans one run, and -m begins many", "leave out -m")
    folder, told = sweep_folder(words)
    arguments.overrides += told
    codes: list[int] = []
    with sweeping(folder, inputs, full_error=full_error, codes=codes) as member:
        _hydra(arguments, member)
    return min(codes, default=0)  # 1 outranks 2


def _is_sweep(arguments: argparse.Namespace) -> bool:
    return bool(arguments.multirun) or "hydra.mode=MULTIRUN" in arguments.overrides


def _hydra(arguments: argparse.Namespace, task: Callable[[DictConfig], object]) -> None:
    """Hand the command line to Hydra, which prints errors and exits unless HYDRA_FULL_ERROR has it raise them."""
    main = hydra.main(
        version_base=compose.VERSION_BASE, config_path=str(sources.config_dir()), config_name=sources.PRIMARY
    )
    options = [f"--{name.replace('_', '-')}" for name, value in vars(arguments).items() if value is True]
    options += [f"--{name}={value}" for name in ("cfg", "info", "package") if (value := getattr(arguments, name))]
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    argv, sys.argv = sys.argv, [PROGRAM, *options, *arguments.overrides]
    try:
        main(task)()
    except Exception as error:
        raise compose.explained(error) from error
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR", None)  # a reward function may have taken it away
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _parsed(argv: list[str]) -> argparse.Namespace:
    """The command line, overrides and options in any order. Raises UserError."""

    def error(message: str) -> NoReturn:
        raise UserError("", message, "see apa-train --help")

    parser = get_args_parser()
    parser.prog, parser.error = PROGRAM, error  # type: ignore[method-assign]
    arguments, rest = parser.parse_known_args(argv)
    options = [name for action in parser._actions for name in action.option_strings]
    for word in rest:
        if word.startswith("-"):
            raise UserError(word, "unknown option", nearest(word.split("=")[0], options) or "see apa-train --help")
    for option in ("config_path", "config_name", "experimental_rerun"):  # of Hydra's, about its own folders
        if getattr(arguments, option):
            raise UserError(f"--{option.replace('_', '-')}", "unknown option", "name a file: config=FILE")
    if arguments.resolve and not arguments.cfg:
        raise UserError("--resolve", "says how --cfg prints", "add --cfg job")
    arguments.overrides += rest
    if arguments.shell_completion or arguments.hydra_help:  # words of its own, such as install=bash
        return arguments
    if arguments.config_dir is not None:
        if not os.path.isdir(arguments.config_dir):
            raise UserError("--config-dir", f"no folder {arguments.config_dir}", "name one that exists")
        place = sources.quoted(f"file://{os.path.abspath(arguments.config_dir)}")
        arguments.overrides.append(f"hydra.searchpath=[{place}]")
        arguments.config_dir = None
    for line in repeated(arguments.overrides):
        say(PROGRAM, line)
    sweep = _is_sweep(arguments)
    arguments.overrides = _resumed(prepared(arguments.overrides, several=sweep), sweep=sweep)
    return arguments


def _resumed(words: list[str], *, sweep: bool) -> list[str]:
    if not any(word.lstrip("+").startswith("resume=") for word in words):
        return words
    from apa_cli.training import resume  # reads runs, which --help need not wait for

    return resume.expand(words, sweep=sweep)


if __name__ == "__main__":
    sys.exit(main())
