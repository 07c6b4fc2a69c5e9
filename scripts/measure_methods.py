"""Measure what docs/methods.md describes, on the built-in task, and write the figures into it.

    python scripts/measure_methods.py steer                one study
    python scripts/measure_methods.py stability group      several, in one queue
    python scripts/measure_methods.py steer --quick        to see that it works: a few minutes, no evidence

Runs are `apa-train -m sweep=joblib`, judged by the separate evaluator: every setting with the first seed before any
with the second, so that what is there when it is interrupted is a whole picture. The same command again runs only what
is missing; studies share the runs of a setting. A study is a module of scripts/studies/ with TITLE, DURATION,
settings(size) and lines(runs, size, pictures), and a pair of markers in the page.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

from studies import critic, group, grpo, offline, page, rewards, runs, stability, steer  # noqa: E402
from sweeps import at_least  # noqa: E402

from apa_cli.config.compose import compose_train  # noqa: E402
from apa_cli.config.sources import shown  # noqa: E402
from apa_cli.errors import UserError  # noqa: E402

PROGRAM = "measure_methods.py"
STUDIES = {
    "steer": steer,
    "stability": stability,
    "group": group,
    "critic": critic,
    "grpo": grpo,
    "rewards": rewards,
    "offline": offline,
}
STAGED = {"grpo": grpo}  # which run some settings to choose others: they make and read their runs themselves
PAGE = ROOT / "docs" / "methods.md"
PROMPTS, QUICK_PROMPTS, QUICK_ITERATIONS = 128, 16, 6


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    output, target, size = Path(arguments.output), Path(arguments.page), size_of(arguments)
    settings = {name: STUDIES[name].settings(size) for name in arguments.studies}
    try:
        if not arguments.report_only:
            make(arguments, settings, size, output)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PAGE, target)
        for name in arguments.studies:
            staged = STAGED.get(name)
            found = staged.read(size, output) if staged else runs.read(settings[name], size, output)
            planned = staged.planned(size) if staged else len(settings[name]) * len(size.seeds)
            said = [page.circumstances(found, size, planned=planned), ""]
            page.write(target, name, said + STUDIES[name].lines(found, size, target.parent / "images"))
        print(f"Page      {shown(str(target))}")
    except UserError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def make(arguments: argparse.Namespace, settings: dict[str, list[runs.Setting]], size: runs.Size, output: Path) -> None:
    common = {"jobs": arguments.jobs, "keep_weights": arguments.keep_weights}
    queue = [setting for name in arguments.studies if name not in STAGED for setting in settings[name]]
    if queue:
        runs.make(queue, size, output, **common)
    for name in arguments.studies:
        if name in STAGED:
            STAGED[name].make(size, output, **common, trl_python=arguments.trl_python)


def parse(argv: list[str] | None) -> argparse.Namespace:
    described = argparse.RawDescriptionHelpFormatter
    studies = "\n".join(f"  {name:<11}{study.TITLE}\n{'':13}{study.DURATION}" for name, study in STUDIES.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=described, epilog=f"studies:\n{studies}"
    )
    add = parser.add_argument
    add("studies", metavar="STUDY", help=f"one or more of {', '.join(STUDIES)}", nargs="+", choices=list(STUDIES))
    add("--output", help="folder for the runs, of all studies (default: runs/methods, with --quick runs/methods_quick)")
    add("--page", help="the page to write into (default: docs/methods.md, with --quick a copy in the runs' folder)")
    add("--quick", help=f"few settings, 1 seed, {QUICK_ITERATIONS} iterations", action="store_true")
    add("--report-only", help="run nothing: write from the runs that are there", action="store_true")
    add("--seeds", help="seeds of each setting, from 1 on (default: 3, with --quick 1)", type=at_least(1))
    add("--jobs", help="runs at a time (default: %(default)s)", type=at_least(1), default=2)
    add("--iterations", help="of each run (default: what the recipe says)", type=at_least(2))
    add("--trl-python", help="grpo: a Python that has trl (default: this one)", default=sys.executable)
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
