"""How many passes over one rollout an objective bears: 1 to 16, at the settings that the study of the family chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from studies import compare, family, measures
from studies.compare import Row
from studies.draw import COLOURS, EVALUATOR, Line, Panel, curves
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import TUNING_SEED, Contestant, Grid

PAGE = "docs/family.md"
title = "1 to 16 passes over a rollout, at the settings that family chose for 2"
duration = "66 runs, and 25 that family has; about 3 hours of one CPU core"
PASSES = (1, 2, 4, 8, 16)
BOUND = "apa (target_bound 3)"
OBJECTIVES: dict[str, tuple[str, str, dict[str, Any]]] = {  # preset, mark of its runs, keys beside the number of passes
    "apa": ("apa", "", {}),
    BOUND: ("apa", "_clipped3", {"objective.target_bound": 3.0}),
    "gvpo": ("gvpo", "", {}),
    "ppo": ("ppo", "", {}),
    "grpo": ("grpo", "_groups", {"training.shuffle": "groups"}),  # family's were made with responses shuffled alone
}
Y = {  # of the picture
    "Separate evaluator, last third": (EVALUATOR, measures.LAST_THIRD.of),
    "KL, last third": ("nats per response", partial(measures.tail, name="eval/kl")),
    "Entropy at the end": ("nats per token", lambda run: run.last("eval/entropy")),
}


def grid(size: Size) -> Grid:
    """What family tunes."""
    return family.grid(size, tuple(dict.fromkeys(preset for preset, _, _ in OBJECTIVES.values())))


def passes(size: Size) -> Sequence[int]:
    return PASSES[::4] if size.quick else PASSES


def variant(title: str, count: int) -> Contestant:
    """With so many passes; family's own where that is what differs in nothing."""
    preset, mark, keys = OBJECTIVES[title]
    if not keys and count == family.composed(preset).training.epochs_per_rollout:
        return family.contestant(preset)
    keys = {**keys, "training.epochs_per_rollout": count}
    return replace(family.contestant(preset), stem=f"passes{count}_{preset}{mark}", keys=keys)


def settings(size: Size) -> list[Setting]:
    """With every cell of the grid, of which one is run."""
    tuned = grid(size)
    made = [variant(title, count) for title in OBJECTIVES for count in passes(size)]
    return list({s.name: s for s in (*tuned.settings(), *replace(tuned, contestants=made).settings())}.values())


def chosen(found: Found, size: Size) -> dict[tuple[str, int], Setting]:
    """By objective and passes, at the preset's cell."""
    cells = {each.title: cell for each, (cell, _) in grid(size).chosen(found).items()}
    pairs = [(title, count) for title in OBJECTIVES if OBJECTIVES[title][0] in cells for count in passes(size)]
    return {(title, count): variant(title, count).setting(cells[OBJECTIVES[title][0]]) for title, count in pairs}


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    yield grid(size).settings(), [TUNING_SEED]
    yield list(chosen(read(), size).values()), size.seeds


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    rows, seeds, base = [], {}, passes(size)[0]
    for (title, count), setting in chosen(found, size).items():
        runs = [run for run in found[setting.name] if run.seed != TUNING_SEED]
        against = f"{title} with {base}" if count != base else ""
        rows.append(Row(cells=[title, str(count)], name=f"{title} with {count}", runs=runs, against=against))
        for run in runs:
            seeds.setdefault(title, {}).setdefault(run.seed, []).append((count, run))
    # a line of the picture: the (passes, run) of one seed
    drawn = [Line(label=title, colour=colour, runs=list(mine.values()))
             for (title, mine), colour in zip(seeds.items(), COLOURS, strict=False)]  # fmt: skip
    panels = [Panel(title=title, of=partial(_over_passes, of=of), lines=drawn, x="passes", y=unit, log="x")  # type: ignore[arg-type]
              for title, (unit, of) in Y.items()]  # fmt: skip
    return compare.report(
        rows,
        ["objective", "passes"],
        family.COLUMNS,
        lambda ours, theirs: [measures.LAST_THIRD, measures.OVER_TRAINING],
        picture=curves(pictures / "methods_passes.png", "Evaluator, KL and entropy against passes", panels),
        note="Learning rate and KL knob are those chosen with the preset's own passes. KL is in nats per response, "
        "entropy in nats per token.",
    )


def _over_passes(pairs: Sequence[tuple[int, Run]], of: measures.Of) -> measures.Points:
    return [(float(count), value) for count, run in pairs if (value := of(run)) is not None]
