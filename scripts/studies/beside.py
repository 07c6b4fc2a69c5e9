"""One setting's runs beside another's: at equal KL, at the end of training, and what an iteration cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Setting as Line
from studies.comparison import UNDECIDED, Difference, Measure, compare, reward_at_kl, reward_over_kl

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def common_level(*groups: Sequence[Run]) -> float | None:
    """The highest half nat of KL that an evaluation of every run comes to; None where there is no such."""
    highest = [max((kl for kl, _ in reward_over_kl(run)), default=0.0) for runs in groups for run in runs]
    level = math.floor(2 * min(highest, default=0.0)) / 2
    return level if level > 0 else None


def tail(run: Run, name: str) -> float | None:
    """Mean of a figure over the evaluations of the last third of training, which is less noisy than the last alone."""
    rows = [row for row in run.rows if row.get(name) is not None and (row["iteration"] or 0) > run.iterations * 2 / 3]
    return statistics.fmean(float(row[name] or 0.0) for row in rows) if rows else None


def typical(run: Run, name: str) -> float | None:
    """The median over iterations: a busy machine makes some of them slow."""
    values = [float(value) for row in run.rows if (value := row.get(name)) is not None]
    return statistics.median(values) if values else None


def at_kl(level: float) -> Measure:
    return measure(f"evaluator at {level:g} nats", partial(reward_at_kl, level=level))


def measure(name: str, of: Callable[[Run], float | None], *, unit: str = "", digits: int = 2) -> Measure:
    return Measure(claim="", name=name, short=name, unit=unit, digits=digits, direction=1, of=of)


def paired(ours: tuple[str, Sequence[Run]], theirs: tuple[str, Sequence[Run]], what: Measure) -> Difference:
    """Over seeds that both have; each is a name for the sentence and its runs."""
    mine, other = (Line(line=name, knob="", runs=tuple(runs)) for name, runs in (ours, theirs))
    return compare(mine, other, what)


def sentences(
    ours: tuple[str, Sequence[Run]], theirs: tuple[str, Sequence[Run]], measures: Sequence[Measure]
) -> list[str]:
    """A line for each measure; [] where one of the two has a single seed, which has no interval."""
    if min(len(ours[1]), len(theirs[1])) < 2:
        return []
    return [f"- {paired(ours, theirs, each).sentence()}" for each in measures]


def same(difference: Difference) -> bool | None:
    """Whether the interval holds 0; None where there is no interval."""
    if difference.value is None or difference.value.half is None:
        return None
    return difference.verdict == UNDECIDED


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def draw_reward_over_kl(axes: Any, runs: Sequence[Run], label: str, colour: str) -> None:
    """Every seed's evaluations in their order, thin, and the mean over seeds."""
    points = [reward_over_kl(run) for run in runs]
    draw_lines(axes, points, label, colour)


def draw_lines(
    axes: Any, points: Sequence[Sequence[tuple[float, float]]], label: str, colour: str, *, seeds: bool = True
) -> None:
    for line in points if seeds else ():
        axes.plot([x for x, _ in line], [y for _, y in line], color=colour, linewidth=0.8, alpha=0.4)
    whole = [line for line in points if len(line) == max(map(len, points))]
    if whole:
        mean = [[statistics.fmean(values) for values in zip(*step, strict=True)] for step in zip(*whole, strict=True)]
        marker = "o" if seeds else ""
        axes.plot([x for x, _ in mean], [y for _, y in mean], color=colour, marker=marker, markersize=3, label=label)
