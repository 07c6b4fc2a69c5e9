"""The studies' pictures: lines over training or over KL."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apa_cli.runs.folders import Run
from apa_cli.tracking.style import BLUE, GREEN, GREY, ORANGE, legend_below, new_figure, tidy, whole_iterations
from studies.measures import OfPoints, Points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, "#56B4E9", "#E69F00")
LOOKS = [{"colour": colour, "style": style} for style in ("-", "--", ":") for colour in COLOURS]
KL = "KL from the initial policy, nats per response"
EVALUATOR = "separate evaluator"


@dataclass(frozen=True, kw_only=True)
class Line:
    label: str
    colour: str
    runs: Sequence[Run]
    style: str = "-"


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    of: OfPoints
    lines: Sequence[Line] = ()
    x: str = "iteration"
    y: str = ""
    mean_only: bool = False
    levels: Sequence[float] = ()  # dashed lines across
    log: str = ""  # which axis, x or y


def curves(path: Path, alt: str, panels: Sequence[Panel], *, same_y: bool = False) -> str:
    """Each seed's points, thin, and the mean over the seeds with as many points. Returns the picture's Markdown."""
    figure = new_figure(min(13.5, 5.7 * len(panels)), 4.4)
    places = figure.subplots(1, len(panels), sharey=same_y, squeeze=False)[0]
    many = len(panels[0].lines) > len(COLOURS)  # one legend for all
    for axes, panel in zip(places, panels, strict=True):
        for line in panel.lines:
            _draw(axes, [found for run in line.runs if (found := panel.of(run))], line, panel.mean_only)
        for level in panel.levels:
            axes.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
        if panel.log == "y":
            axes.set_yscale("log")
        elif panel.log == "x":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        tidy(axes, panel.title, legend=not many)
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        if panel.x == "iteration":
            whole_iterations(axes)
    if many:
        legend_below(figure, *places[0].get_legend_handles_labels())
    return save(figure, path, alt)


def _draw(axes: Any, seeds: Sequence[Points], line: Line, mean_only: bool) -> None:
    look = {"color": line.colour, "linestyle": line.style}
    for points in () if mean_only else seeds:
        axes.plot(*zip(*points, strict=True), **look, linewidth=0.8, alpha=0.4)
    whole = [points for points in seeds if len(points) == max(map(len, seeds))]
    if whole:
        mean = [[statistics.fmean(values) for values in zip(*step, strict=True)] for step in zip(*whole, strict=True)]
        axes.plot(*zip(*mean, strict=True), **look, linewidth=1.5, label=line.label)


def save(figure: Figure, path: Path, alt: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return f"![{alt}]({path.parent.name}/{path.name})"
