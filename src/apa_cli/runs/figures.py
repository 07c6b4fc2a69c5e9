"""Pictures of several runs: reward against KL, and reward, KL and entropy over iterations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apa_cli.runs.settings import Setting, estimate
from apa_cli.tracking.plots import PLOTS_FOLDER
from apa_cli.tracking.style import BLUE, GREEN, GREY, ORANGE, legend_below, new_figure, over_iterations, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = "osD^vPX"
_PLACES = ((6, -14), (6, 6), (-6, 6), (-6, -14))  # points from the marker; a frontier leaves the first free
_PANELS = (("eval/reward", "Reward"), ("eval/evaluator", "Separate evaluator"))
_CURVES = (
    ("reward/mean", "Reward of the rollouts", "reward per response"),
    ("kl/to_init", "KL from the initial policy, rollouts", "nats per response"),
    ("policy/entropy", "Entropy of the policy, rollouts", "nats per token"),
)


def draw_all(settings: Sequence[Setting], folder: Path) -> list[Path]:
    """Write plots/frontier.png and plots/iterations.png in `folder`; [] where nothing was measured yet."""
    if not settings:
        return []
    paths = [folder / PLOTS_FOLDER / f"{name}.png" for name in ("frontier", "iterations")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, draw in zip(paths, (frontier, iterations), strict=True):
        draw(settings).savefig(path)
    return paths


def frontier(settings: Sequence[Setting]) -> Figure:
    """Reward against KL at the end of each run: a line through the means of its settings, a small point for a seed."""
    panels = [panel for panel in _PANELS if any(setting.final(panel[0]) for setting in settings)] or [_PANELS[0]]
    figure = new_figure(6.4 * len(panels), 5.2)
    held_out = [run.evaluated for setting in settings for run in setting.counted]
    measured_on = [name for name, on in (("held-out prompts", True), ("last rollout", False)) if on in held_out]
    labels: list[Annotation] = []
    for axes, (name, title) in zip(_row(figure, len(panels)), panels, strict=True):
        labels += _draw_frontier(axes, settings, name)
        axes.set_xlabel("KL from the initial policy, nats per response")
        axes.set_ylabel("per response, mean over prompts")
        axes.margins(x=0.08, y=0.12)
        tidy(axes, f"{title}, {' or '.join(measured_on)}", legend=False)
    _shared_legend(figure)
    _keep_apart(figure, labels)
    return figure


def _draw_frontier(axes: Axes, settings: Sequence[Setting], name: str) -> list[Annotation]:
    """The labels of the points, which are still to be kept apart."""
    labels = []
    for place, line in enumerate(dict.fromkeys(setting.line for setting in settings)):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        points = []  # mean KL, mean, lowest, highest, knob
        for setting in settings:
            kl, reward = setting.final("eval/kl"), setting.final(name)
            if setting.line != line or kl is None or reward is None:
                continue
            points.append((kl.mean, reward.mean, reward.lowest, reward.highest, setting.knob))
            seeds = [(run.last("eval/kl"), run.last(name)) for run in setting.counted]
            known = [seed for seed in seeds if None not in seed]
            if len(known) > 1:
                axes.plot(*zip(*known, strict=True), marker, markersize=3.5, color=colour, alpha=0.5)
        if points:
            x, mean, low, high, knobs = (list(column) for column in zip(*sorted(points), strict=True))
            if low != high and len(points) > 1:
                axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(x, mean, color=colour, marker=marker, markersize=6.5, label=line)
            labels += [_label(axes, *point, colour) for point in zip(x, mean, knobs, strict=True)]
    start = estimate(run.first(name) for setting in settings for run in setting.counted)
    if start is not None:
        axes.plot([0], [start.mean], "*", markersize=12, color=GREY, label="before training")
    return labels


def _label(axes: Axes, x: float, y: float, knob: str, colour: str) -> Annotation:
    from matplotlib.patheffects import withStroke

    label = axes.annotate(
        knob, (x, y), xytext=_PLACES[0], textcoords="offset points", fontsize=9, color=colour,
        parse_math=False, in_layout=False,
    )  # fmt: skip
    label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    return label


def _keep_apart(figure: Figure, labels: Sequence[Annotation]) -> None:
    """Each label to the first of its places where it lies on no marker and no other label; away where there is none."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles where the axes are
    taken = [
        Bbox.from_extents(x - 7, y - 7, x + 7, y + 7)
        for axes in figure.axes
        for line in axes.lines
        for x, y in axes.transData.transform(line.get_xydata())  # type: ignore[arg-type]
    ]
    for label in labels:
        for place in _PLACES:
            label.set_position(place)
            label.set_horizontalalignment("left" if place[0] > 0 else "right")
            box = label.get_window_extent()
            inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.axes[0].bbox.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            label.remove()


def iterations(settings: Sequence[Setting]) -> Figure:
    """Over the rollouts of training: the mean over seeds, and a band from the lowest seed to the highest."""
    figure = new_figure(13.5, 5.2)
    for axes, (name, title, unit) in zip(_row(figure, len(_CURVES)), _CURVES, strict=True):
        for place, setting in enumerate(settings):
            x, mean, low, high = curve(setting, name)
            if not x:
                continue
            colour = _colour(place, len(settings))
            if len(setting.counted) > 1:
                axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(x, mean, color=colour, linewidth=1.5, marker="o" if len(x) == 1 else "", label=setting.label)
        axes.margins(x=0.08, y=0.12)
        over_iterations(axes, title, unit, legend=False)
    _shared_legend(figure)
    return figure


def curve(setting: Setting, name: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Iterations, mean, lowest and highest over the seeds, at iterations that every seed has."""
    of_runs = [{row["iteration"]: row.get(name) for row in run.rows} for run in setting.counted]
    series = [{x: y for x, y in points.items() if x is not None and y is not None} for points in of_runs]
    series = [points for points in series if points]
    common = sorted(set.intersection(*(set(points) for points in series))) if series else []
    columns = [[points[x] for points in series] for x in common]
    means = [math.fsum(column) / len(column) for column in columns]
    return common, means, [min(column) for column in columns], [max(column) for column in columns]


def _colour(place: int, count: int) -> object:
    if count <= len(COLOURS):
        return COLOURS[place]
    from matplotlib import colormaps

    return colormaps["viridis"](0.05 + 0.85 * place / (count - 1))


def _row(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def _shared_legend(figure: Figure) -> None:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    legend_below(figure, list(handles.values()), list(handles))
