"""Measure what docs/ and the README report of the methods, and write the figures into the pages.

    python scripts/measure_methods.py steer                one study
    python scripts/measure_methods.py stability group      several, one after the other
    python scripts/measure_methods.py steer --quick        to see that it works: a few minutes, no evidence

Runs are `apa-train -m sweep=joblib`, judged by the separate evaluator: every setting with the first seed before any
with the second, so that what is there when it is interrupted is a whole picture. The same command again runs only what
is missing; studies share the runs of a setting. A study is a module of scripts/studies/ with title, duration,
settings(size), lines(found, size, pictures), where some of its runs choose others stages(size, read), or a Study of
beside.py; and a pair of markers in its page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

from studies import arithmetic, beside, family, figures, page, paper, passes, runs, sentiment, stability, tuning  # noqa: E402

from apa_cli.config.sources import shown  # noqa: E402
from apa_cli.errors import UserError  # noqa: E402

STUDIES: dict[str, Any] = {  # modules, or alike
    **{study.__name__.removeprefix("studies."): study for study in (paper, figures, stability)},
    **{
        "steer": beside.STEER,
        "group": beside.GROUP,
        "critic": beside.CRITIC,
        "rewards": beside.REWARDS,
        "offline": beside.OFFLINE,
    },
    **{"family": family, "passes": passes, "arithmetic": arithmetic, "sentiment": sentiment},
}
PAGE = "docs/methods.md"


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        for name in arguments.studies:
            measure(name, STUDIES[name], arguments)
    except UserError as error:
        print(f"{page.PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{page.PROGRAM}: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def measure(name: str, study: Any, arguments: argparse.Namespace) -> None:
    size, output = size_of(study, arguments), Path(arguments.output)
    settings, staged = study.settings(size), hasattr(study, "stages")
    seeds = [*([tuning.TUNING_SEED] if staged else []), *size.seeds]

    def stages(read: Callable[[], runs.Found]) -> runs.Stages:
        return study.stages(size, read) if staged else iter([(settings, size.seeds)])

    kept = ROOT / study.KEPT if hasattr(study, "KEPT") and not arguments.quick else None
    if kept:
        runs.restore(kept, output)
    if not arguments.report_only:
        try:
            runs.make(stages(lambda: runs.read(settings, seeds, output)), size, output, jobs=arguments.jobs)
        finally:
            if kept:
                runs.keep(output, kept)
    found = runs.read(settings, seeds, output)
    planned = sum(len(settings) * len(seeds) for settings, seeds in stages(lambda: found))
    target = output / f"{name}.md" if arguments.quick else ROOT / getattr(study, "PAGE", PAGE)
    pictures = (target.parent / "docs" if target.name == "README.md" else target.parent) / "images"
    task = getattr(study, "TASK", "built-in task")
    said = [page.circumstances(found, size, planned=planned, task=task), ""]
    page.write(target, name, said + study.lines(found, size, pictures))
    print(f"Page      {shown(str(target))}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    studies = "\n".join(f"  {name:<11}{study.title}\n{'':13}{study.duration}" for name, study in STUDIES.items())
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=page.PROGRAM, description=__doc__, formatter_class=plain,
                                     epilog=f"studies:\n{studies}")  # fmt: skip
    add = parser.add_argument
    add("studies", metavar="STUDY", help=f"one or more of {', '.join(STUDIES)}", nargs="+", choices=list(STUDIES))
    add("--output", help="folder for the runs, and with --quick the page (default: under runs/)")
    add("--quick", help="few settings, seeds and iterations, to see that it works", action="store_true")
    add("--report-only", help="run nothing: write from the runs that are there", action="store_true")
    add("--seeds", help="fresh seeds of each setting, from 1 on", type=int)
    add("--scale", help="of the studies on a real model: cpu, or gpu for larger batches and more seeds (default: cpu)",
        choices=["cpu", "gpu"], default="cpu")  # fmt: skip
    add("--jobs", help="runs at a time (default: %(default)s; on one GPU: 1)", type=int, default=2)
    arguments = parser.parse_args(argv)
    arguments.output = arguments.output or f"runs/methods{'_quick' if arguments.quick else ''}"
    return arguments


def size_of(study: Any, arguments: argparse.Namespace) -> runs.Size:
    seeds = getattr(study, "QUICK_SEEDS", 1) if arguments.quick else getattr(study, "SEEDS", 3)
    gpu = arguments.scale == "gpu"
    iterations, prompts = (6, 16) if arguments.quick else (getattr(study, "ITERATIONS", 60), 128)
    fresh = range(1, (arguments.seeds or (5 if gpu else seeds)) + 1)
    return runs.Size(quick=arguments.quick, seeds=fresh, iterations=iterations, prompts=prompts, gpu=gpu)


if __name__ == "__main__":
    sys.exit(main())
