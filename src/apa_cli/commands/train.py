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
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
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
from apa_cli.commands.sweep import PROGRAM, composed_with, first_choices, is_sweep, planned, sweeping
from apa_cli.config import compose, help_text, sources
from apa_cli.config.overrides import prepared, repeated
from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from apa_cli.tracking.report import Summary

# Hydra's settings of a process that it starts: one run happens in this one.
_OF_SEVERAL = ("hydra.job.", "hydra.callbacks.", "hydra.output_subdir")


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
    words = _resumed(prepared(words), sweep=False, named=False)
    settings = compose.to_train_config(compose.compose_raw(words))
    if settings.plan_only:
        raise UserError("plan_only", "shows a plan, and trains nothing", "leave it out, or run apa-train")
    _run(settings, words, signals=False)
    return _summary(Path(settings.output_dir))


def _run(config: TrainConfig, words: Sequence[str], *, signals: bool) -> None:
    """One run in this process."""
    for word in words:
        if word.lstrip("+~").startswith(_OF_SEVERAL):
            raise UserError(word.partition("=")[0], "has no effect on a single run", "leave it out, or add -m")
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
    parser = get_args_parser()
    arguments = _parsed(parser, argv)
    if arguments.help:
        print(help_text.render(), flush=True)
        return 0
    full_error = traceback_wanted()
    if any(getattr(arguments, name) for name in ("hydra_help", "cfg", "info", "shell_completion")):
        if arguments.cfg or arguments.info:
            composed_with(arguments, first_choices(arguments.overrides))  # refuses code before Hydra would run it
        _hydra(arguments, lambda config: None)
        return 0
    if not is_sweep(arguments):
        config = compose.to_train_config(composed_with(arguments, arguments.overrides))
        try:
            _run(config, arguments.overrides, signals=True)
        except Exception as error:
            return report_error(PROGRAM, error, run_dir=Path(config.output_dir), full=full_error)
        return 0
    composed_with(arguments, first_choices(arguments.overrides))
    inputs: list[tuple[str, Path]] = []
    for overrides in planned(arguments):
        config = compose.to_train_config(composed_with(arguments, overrides))
        check_folder(config.output_dir)
        inputs += inputs_of(config)
        if config.plan_only:
            raise UserError("plan_only", "plans one run, and -m begins many", "leave out -m")
    codes: list[int] = []
    with sweeping(arguments, inputs, full_error=full_error, codes=codes) as member:
        _hydra(arguments, member)
    return min(codes, default=0)  # 1 outranks 2


def _hydra(arguments: argparse.Namespace, task: Callable[[DictConfig], object]) -> None:
    """Hand the command line to Hydra, which prints errors and exits unless HYDRA_FULL_ERROR has it raise them."""
    main = hydra.main(
        version_base=compose.VERSION_BASE, config_path=str(sources.config_dir()), config_name=sources.PRIMARY
    )
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    argv, sys.argv = sys.argv, [PROGRAM, *_options(arguments), *arguments.overrides]
    try:
        main(task)()
    except Exception as error:
        raise compose.explained(error) from error
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR", None)  # a reward function may have taken it away
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _options(arguments: argparse.Namespace) -> Iterator[str]:
    for name, value in vars(arguments).items():
        if name != "overrides" and value:
            yield f"--{name.replace('_', '-')}"
            if value is not True:
                yield value


def _parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The command line, overrides and options in any order. Raises UserError."""

    def error(message: str) -> NoReturn:
        raise UserError("", message, "see apa-train --help")

    parser.prog, parser.error = PROGRAM, error  # type: ignore[method-assign]
    arguments, rest = parser.parse_known_args(argv)
    options = {name: action for action in parser._actions for name in action.option_strings}
    for word in rest:
        if word.startswith("-"):
            near = get_close_matches(word.split("=")[0], options, n=1)
            raise UserError(word, "unknown option", f"did you mean {near[0]}?" if near else "see apa-train --help")
    arguments.overrides += rest
    if arguments.resolve and not arguments.cfg:
        raise UserError("--resolve", "says how --cfg prints", "add --cfg job")
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun", "unknown option", "to resume a run: resume=RUN")
    actions = ("run", "multirun", "cfg", "info", "shell_completion")
    if len(given := [f"--{name.replace('_', '-')}" for name in actions if getattr(arguments, name)]) > 1:
        raise UserError(" ".join(given), "do different things", "keep one of them")
    if arguments.config_path and "://" not in arguments.config_path:
        arguments.config_path = os.path.abspath(arguments.config_path)
    folders = [folder for folder in (arguments.config_path, arguments.config_dir) if folder]
    for folder in folders:
        if "://" not in folder and not os.path.isdir(folder):
            option = "--config-path" if folder == arguments.config_path else "--config-dir"
            raise UserError(option, f"no folder {folder}", "name one that exists")
    if arguments.shell_completion or arguments.hydra_help:  # words of its own, such as install=bash
        return arguments
    sweep = is_sweep(arguments)
    words = prepared(arguments.overrides, several=sweep, folders=folders)
    for line in repeated(arguments.overrides):
        say(PROGRAM, line)
    arguments.overrides = _resumed(words, sweep=sweep, named=arguments.config_name is not None)
    return arguments


def _resumed(words: list[str], *, sweep: bool, named: bool) -> list[str]:
    if not any(word.lstrip("+").startswith("resume=") for word in words):
        return words
    from apa_cli.training import resume  # reads runs, which --help need not wait for

    return resume.expand(words, sweep=sweep, named=named)


if __name__ == "__main__":
    sys.exit(main())
