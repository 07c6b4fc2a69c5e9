"""Measure what docs/methods.md describes, on the built-in task, and write the figures into it.

    python scripts/measure_methods.py steer            KL on target: 36 runs, about half an hour on two CPU cores
    python scripts/measure_methods.py stability        small λ: 108 runs, about an hour and a half
    python scripts/measure_methods.py steer --quick    to see that it works: a few minutes, no evidence

Runs are `apa-train -m sweep=joblib`, judged by the separate evaluator; the same command again runs only what is
missing. A study is a module of scripts/methods/ with TITLE, settings(size) and lines(runs, size, pictures), and a pair
of markers in the page.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

from methods import page, runs, stability, steer  # noqa: E402
from reproduce_paper import at_least  # noqa: E402

from apa_cli.config.compose import compose_train  # noqa: E402
from apa_cli.config.sources import shown  # noqa: E402
from apa_cli.errors import UserError  # noqa: E402

PROGRAM = "measure_methods.py"
STUDIES = {"steer": steer, "stability": stability}
PAGE = ROOT / "docs" / "methods.md"
PROMPTS, QUICK_PROMPTS, QUICK_ITERATIONS = 128, 16, 6


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    study, output, target = STUDIES[arguments.study], Path(arguments.output), Path(arguments.page)
    size = size_of(arguments)
    try:
        settings = study.settings(size)
        if not arguments.report_only:
            runs.make(settings, size, output, jobs=arguments.jobs, keep_weights=arguments.keep_weights)
        found = runs.read(settings, size, output)
        said = [page.circumstances(size.seeds, size.iterations, quick=size.quick), ""]
        lines = said + study.lines(found, size, target.parent / "images")
        if not target.exists():
            shutil.copyfile(PAGE, target)
        page.write(target, arguments.study, lines)
        print(f"Page      {shown(str(target))}")
    except UserError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=described)
    commands = parser.add_subparsers(dest="study", required=True)
    for name, study in STUDIES.items():
        add = commands.add_parser(name, help=study.TITLE, description=study.TITLE).add_argument
        add(
            "--output",
            help="folder for the runs, of all studies (default: runs/methods, with --quick runs/methods_quick)",
        )
        add("--page", help="the page to write into (default: docs/methods.md, with --quick a copy in the runs' folder)")
        add("--quick", help=f"few settings, 1 seed, {QUICK_ITERATIONS} iterations", action="store_true")
        add("--report-only", help="run nothing: write from the runs that are there", action="store_true")
        add("--seeds", help="seeds of each setting, from 1 on (default: 3, with --quick 1)", type=at_least(1))
        add("--jobs", help="runs at a time (default: %(default)s)", type=at_least(1), default=2)
        add("--iterations", help="of each run (default: what the recipe says)", type=at_least(2))
        add("--keep-weights", help="keep checkpoints and final models", action="store_true")
    arguments = parser.parse_args(argv)
    arguments.output = arguments.output or f"runs/methods{'_quick' if arguments.quick else ''}"
    arguments.page = arguments.page or (f"{arguments.output}/methods.md" if arguments.quick else str(PAGE))
    return arguments


def size_of(arguments: argparse.Namespace) -> runs.Size:
    quick, usual = arguments.quick, compose_train(["config=reviews_apa"]).training.iterations
    return runs.Size(
        quick=quick,
        seeds=range(1, (arguments.seeds or (1 if quick else 3)) + 1),
        iterations=arguments.iterations or (QUICK_ITERATIONS if quick else usual),
        prompts=QUICK_PROMPTS if quick else PROMPTS,
    )


if __name__ == "__main__":
    sys.exit(main())
