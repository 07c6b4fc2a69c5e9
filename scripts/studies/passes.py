"""How many passes over one rollout an objective bears: 1 to 16, at the settings that the study of the family chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from studies import family, measures
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
LAST = measures.LAST_THIRD
COLUMNS = {
    LAST.name: LAST.of,
    "KL, last third": partial(measures.tail, name="eval/kl"),
    "evaluator, mean over training": measures.over_training,
    "entropy at the end": lambda run: run.last("eval/entropy"),
    "different responses at the end": lambda run: run.last("eval/unique_fraction"),
    measures.CPU.name: measures.CPU.of,
}


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
    runs = {key: [run for run in found[setting.name] if run.seed != TUNING_SEED]
            for key, setting in chosen(found, size).items()}  # fmt: skip
    runs = {key: mine for key, mine in runs.items() if mine}
    rows = [
        [title, str(count), *(measures.shown(mine, of) for of in COLUMNS.values()),
         f"{sum(map(measures.collapsed, mine))} of {len(mine)}"]
        for (title, count), mine in runs.items()
    ]  # fmt: skip
    drawn = {}
    for title, colour in zip(OBJECTIVES, COLOURS, strict=False):
        by_seed = [[(count, run) for (name, count), mine in runs.items() if name == title for run in mine
                    if run.seed == seed] for seed in size.seeds]  # fmt: skip
        drawn[title] = Line(label=title, colour=colour, runs=[pairs for pairs in by_seed if pairs])  # type: ignore[misc]
    panels = [
        Panel(title=name, of=partial(_over_passes, of=COLUMNS[name]), lines=list(drawn.values()), x="passes", y=unit,
              log="x")  # type: ignore[arg-type]
        for name, unit in (("evaluator, last third", EVALUATOR), ("KL, last third", "nats per response"),
                           ("entropy at the end", "nats per token"))
    ]  # fmt: skip
    return [
        *(_best(title, {count: mine for (name, count), mine in runs.items() if name == title}) for title in OBJECTIVES),
        "",
        curves(pictures / "methods_passes.png", "Evaluator, KL and entropy against passes", panels),
        "",
        f"Learning rate and KL knob are those chosen with the preset's own passes. {measures.HALF}; KL is in nats per "
        "response, entropy in nats per token.",
        "",
        DETAILS,
        *table(["objective", "passes", *COLUMNS, "collapsed"], rows),
    ]


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
