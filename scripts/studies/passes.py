"""How many passes over one rollout an objective bears: 1 to 16, at the settings that the study of the family chose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from studies import compare, family, measures
from studies.draw import COLOURS, EVALUATOR, Line, Panel, curves
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import TUNING_SEED, Contestant, Grid

TITLE = "1 to 16 passes over a rollout, at the settings that family chose for 2"
DURATION = "63 runs, and 28 that family has; about 3 hours of one CPU core"
PASSES = (1, 2, 4, 8, 16)
BOUND = "apa, target_bound 3"
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "apa": ("apa", {}),
    BOUND: ("apa", {"objective.target_bound": 3.0}),
    "gvpo": ("gvpo", {}),
    "ppo": ("ppo", {}),
    "grpo": ("grpo", {}),
}
LAST, KL = measures.LAST_THIRD, partial(measures.tail, name="eval/kl")
COLUMNS = {
    **compare.LAST_THIRD,
    measures.OVER_TRAINING.name: compare.mean(measures.over_training),
    "entropy at the end": compare.mean("eval/entropy"),
    "different responses at the end": compare.mean("eval/unique_fraction"),
    **compare.SECONDS,
    "collapsed": compare.count(measures.collapsed),
}


def entropy(run: Run) -> float | None:
    return run.last("eval/entropy")


def grid(size: Size) -> Grid:
    """What family tunes."""
    return family.grid(size, tuple(dict.fromkeys(preset for preset, _ in OBJECTIVES.values())))


def passes(size: Size) -> Sequence[int]:
    return PASSES[::4] if size.quick else PASSES


def variant(title: str, count: int) -> Contestant:
    """With so many passes; family's own where that is what differs in nothing."""
    preset, keys = OBJECTIVES[title]
    if not keys and count == family.composed(preset).training.epochs_per_rollout:
        return family.contestant(preset)
    stem = f"passes{count}_{preset}{'_bound3' if keys else ''}"
    return replace(family.contestant(preset), stem=stem, keys={**keys, "training.epochs_per_rollout": count})


def settings(size: Size) -> list[Setting]:
    """With every cell of the grid, of which one is run."""
    tuned = grid(size)
    made = [variant(title, count) for title in OBJECTIVES for count in passes(size)]
    return list({s.name: s for s in (*tuned.settings(), *replace(tuned, contestants=made).settings())}.values())


def planned(size: Size) -> int:
    return len(grid(size).settings()) + len(OBJECTIVES) * len(passes(size)) * len(size.seeds)


def chosen(found: Found, size: Size) -> dict[tuple[str, int], Setting]:
    """By objective and passes, at the preset's cell."""
    cells = {each.title: cell for each, (cell, _) in grid(size).chosen(found).items()}
    return {
        (title, count): variant(title, count).setting(cells[preset])
        for title, (preset, _) in OBJECTIVES.items()
        for count in passes(size)
        if preset in cells
    }


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    yield grid(size).settings(), [TUNING_SEED]
    yield list(chosen(read(), size).values()), size.seeds


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    runs = {key: mine for key, setting in chosen(found, size).items()
            if (mine := [run for run in found[setting.name] if run.seed != TUNING_SEED])}  # fmt: skip
    by_title = {title: {count: mine for (name, count), mine in runs.items() if name == title} for title in OBJECTIVES}
    rows = [
        [title, str(count), *(column(mine) for column in COLUMNS.values())] for (title, count), mine in runs.items()
    ]
    drawn = [Line(label=title, colour=colour, runs=list(_by_seed(mine)))  # type: ignore[arg-type]
             for (title, mine), colour in zip(by_title.items(), COLOURS, strict=False)]  # fmt: skip
    panels = [
        Panel(title=title, of=partial(_over_passes, of=of), lines=drawn, x="passes", y=unit, log="x")  # type: ignore[arg-type]
        for title, of, unit in (("Separate evaluator, last third", LAST.of, EVALUATOR), ("KL, last third", KL, "nats"),
                                ("Entropy at the end", entropy, "nats per token"))
    ]  # fmt: skip
    return [
        *(_best(title, mine) for title, mine in by_title.items()),
        "",
        curves(pictures / "methods_passes.png", "Evaluator, KL and entropy against passes", panels),
        "",
        f"Learning rate and KL knob are those chosen with the preset's own passes. {measures.HALF}; KL is in nats per "
        "response, entropy in nats per token.",
        "",
        DETAILS,
        *table(["objective", "passes", *COLUMNS], rows),
    ]


def _by_seed(by_count: Mapping[int, Sequence[Run]]) -> Iterable[list[tuple[int, Run]]]:
    """(passes, run) of each seed: a line of the picture."""
    for seed in sorted({run.seed for mine in by_count.values() for run in mine}):
        yield [(count, run) for count, mine in by_count.items() for run in mine if run.seed == seed]


def _over_passes(pairs: Sequence[tuple[int, Run]], of: measures.Of) -> measures.Points:
    return [(float(count), value) for count, run in pairs if (value := of(run)) is not None]


def _best(title: str, by_count: Mapping[int, Sequence[Run]]) -> str:
    """The passes with the highest evaluator, and which numbers of passes are significantly lower."""
    means = {c: value.mean for c, mine in by_count.items() if (value := measures.estimate(map(LAST.of, mine)))}
    if len(means) < 2:
        return f"- {title}: too few runs."
    best = max(means, key=means.__getitem__)
    lower = [str(count) for count, mine in by_count.items()
             if measures.compare(("best", by_count[best]), ("other", mine), LAST).sign > 0]  # fmt: skip
    words = f"significantly lower with {', '.join(lower)}" if lower else "with no other number significantly lower"
    return f"- {title}: the evaluator's reward is highest with {best} passes ({means[best]:.2f}), {words}."
