"""Pictures of a comparison of objectives: reward against KL, and KL, diversity and reward over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apa_cli.runs.figures import COLOURS, MARKERS, curve
from apa_cli.runs.settings import Setting, estimate
from apa_cli.tracking.style import GREY, new_figure, tidy
from studies.comparison import at_level, reward_over_kl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NATS = "nats per response"
_GRID = 60  # points of a curve over KL
_BAND = "means over seeds, bands from the lowest seed to the highest"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One metric over training."""

    name: str
    title: str
    unit: str
    rollouts: bool = False  # over the number of sampled responses in place of iterations


def draw(
    folder: Path, tuned: Sequence[Setting], knobs: Sequence[Setting], *, stem: str, reward_levels: Sequence[float] = ()
) -> dict[str, Path]:
    """Write STEM_reward_kl.png, STEM_kl.png, STEM_collapse.png and STEM_rollouts.png; their paths by last part."""
    figures = {
        "reward_kl": reward_kl(tuned, knobs),
        "kl": over_training(tuned, [Panel(name="kl/to_init", title="KL from the initial policy", unit=_NATS)]),
        "collapse": over_training(
            tuned,
            [
                Panel(name="policy/entropy", title="Entropy", unit="nats per token"),
                Panel(name="policy/unique_fraction", title="Different responses", unit="fraction of a rollout"),
                Panel(name="policy/distinct_2", title="Distinct-2", unit="different bigrams / bigrams"),
            ],
        ),
        "rollouts": over_training(
            tuned,
            [Panel(name="eval/evaluator", title="Separate evaluator", unit="per response", rollouts=True)],
            levels=reward_levels,
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, figure in figures.items():
        paths[name] = folder / f"{stem}_{name}.png"
        figure.savefig(paths[name])
    return paths


def reward_kl(tuned: Sequence[Setting], knobs: Sequence[Setting]) -> Figure:
    """The separate evaluator against KL: along training at the tuned settings, and at the end for every knob."""
    figure = new_figure(12.4, 4.8)
    along, end = figure.subplots(1, 2, sharey=True)
    for place, setting in enumerate(tuned):
        _draw_knobs(end, [knob for knob in knobs if knob.line == setting.line], place)
        x, mean, low, high = reward_curve(setting)
        if not x:
            continue
        along.fill_between(x, low, high, color=COLOURS[place], alpha=0.15, linewidth=0)
        along.plot(x, mean, color=COLOURS[place], linewidth=1.8, label=setting.label)
        along.plot(x[-1:], mean[-1:], color=COLOURS[place], marker=MARKERS[place], markersize=6)
    _finish(along, "During training, tuned settings", f"KL from the initial policy, {_NATS}")
    along.set_ylabel("separate evaluator, per response")
    _finish(end, "At the end, each KL knob", f"KL from the initial policy, {_NATS}")
    figure.supxlabel(f"left: {_BAND}; right: means and 95 % intervals", fontsize=8.5, color="#555555")
    return figure


def reward_curve(setting: Setting) -> tuple[list[float], list[float], list[float], list[float]]:
    """KL, and mean, lowest and highest evaluator over the seeds, as far as every seed goes."""
    runs = [points for run in setting.counted if (points := reward_over_kl(run))]
    reach = min((max(kl for kl, _ in points) for points in runs), default=0.0)
    columns: tuple[list[float], ...] = ([], [], [], [])
    for step in range(_GRID + 1) if reach > 0 else ():
        kl = reach * step / _GRID
        value = estimate(at_level(points, kl) for points in runs)
        if value is not None:
            for column, number in zip(columns, (kl, value.mean, value.lowest, value.highest), strict=True):
                column.append(number)
    x, mean, low, high = columns
    return x, mean, low, high


def over_training(tuned: Sequence[Setting], panels: Sequence[Panel], *, levels: Sequence[float] = ()) -> Figure:
    """A panel for each metric, a line for each setting."""
    figure = new_figure(7.5 if len(panels) == 1 else 4.6 * len(panels), 4.3)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, setting in enumerate(tuned):
            x, mean, low, high = curve(setting, panel.name)
            if not x:
                continue
            size = float(setting.runs[0].config.get("rollout.batch_size", 1)) if panel.rollouts else 1.0
            x = [size * iteration for iteration in x]
            axes.fill_between(x, low, high, color=COLOURS[place], alpha=0.15, linewidth=0)
            axes.plot(x, mean, color=COLOURS[place], linewidth=1.5, label=setting.label)
        for level in levels if axes.lines else ():
            axes.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
        _finish(axes, panel.title, "sampled responses" if panel.rollouts else "iteration")
        axes.set_ylabel(panel.unit)
    figure.supxlabel(_BAND, fontsize=8.5, color="#555555")
    return figure


def _draw_knobs(axes: Axes, settings: Sequence[Setting], place: int) -> None:
    points = []
    for setting in settings:
        kl, reward = setting.final("eval/kl"), setting.final("eval/evaluator")
        if kl is not None and reward is not None:
            points.append((kl.mean, reward.mean, kl.half or 0.0, reward.half or 0.0, setting.knob))
    if not points:
        return
    x, y, x_half, y_half, names = zip(*sorted(points), strict=True)
    axes.errorbar(
        x, y, xerr=x_half, yerr=y_half, color=COLOURS[place], marker=MARKERS[place], markersize=6, linewidth=1.3,
        elinewidth=0.9, label=settings[0].line,
    )  # fmt: skip
    for i, (kl, reward, name) in enumerate(zip(x, y, names, strict=True)):
        axes.annotate(
            name, (kl, reward), xytext=(7, 7 if i % 2 else -13), textcoords="offset points", fontsize=8.5,
            color=COLOURS[place],
        )  # fmt: skip


def _finish(axes: Axes, title: str, x_label: str) -> None:
    tidy(axes, title)
    axes.set_xlabel(x_label)
