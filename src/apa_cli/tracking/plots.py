"""Plots of a run's metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from apa_cli.tracking.metrics import read_metrics
from apa_cli.tracking.style import BLUE, GREEN, GREY, ORANGE, new_figure, tidy, whole_iterations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS_FOLDER = "plots"

Rows = list[dict[str, "float | None"]]


def draw_run(run_dir: Path) -> list[Path]:
    """Write plots/*.png of a run's folder and return their paths, overview first; [] without metrics."""
    rows = read_metrics(run_dir)
    if not rows:
        return []
    folder = run_dir / PLOTS_FOLDER
    folder.mkdir(exist_ok=True)
    figures = {
        "overview": overview_figure(rows),
        "reward": _single(rows, _draw_reward),
        "kl": _single(rows, _draw_kl),
        "entropy": _entropy(rows),
        "losses": _losses(rows),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def _series(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """Iterations and finite values of one metric; rows without it are left out."""
    points = [(row["iteration"], row.get(name)) for row in rows]
    finite = [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _line(
    axes: Axes, rows: Rows, name: str, label: str, colour: str, *, held_out: bool = False, dashed: bool = False
) -> None:
    """One metric, with markers for held-out evaluations."""
    x, y = _series(rows, name)
    if not x:
        return
    marker = "o" if held_out or len(x) == 1 else ""
    axes.plot(x, y, color=colour, label=label, linestyle="--" if dashed else "-", marker=marker, markersize=4)


def _draw_reward(axes: Axes, rows: Rows) -> None:
    both = [row for row in rows if row.get("reward/mean") is not None and row.get("reward/std") is not None]
    x, mean = _series(both, "reward/mean")
    std = _series(both, "reward/std")[1]
    if len(x) > 1:
        low = [m - s for m, s in zip(mean, std, strict=True)]
        high = [m + s for m, s in zip(mean, std, strict=True)]
        axes.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="± 1 deviation")
    _line(axes, rows, "reward/mean", "rollouts, mean", BLUE)
    _line(axes, rows, "eval/reward", "held-out prompts", ORANGE, held_out=True)
    _line(axes, rows, "eval/evaluator", "held-out, separate evaluator", GREEN, held_out=True)
    _finish(axes, "Reward", "reward per response")


def _draw_kl(axes: Axes, rows: Rows) -> None:
    _line(axes, rows, "kl/to_init", "k1, rollouts", BLUE)
    _line(axes, rows, "kl/to_init_k3", "k3, rollouts", GREY, dashed=True)
    _line(axes, rows, "eval/kl", "k1, held-out prompts", ORANGE, held_out=True)
    if axes.lines:
        axes.axhline(0, color="black", linewidth=0.8, alpha=0.5)
    _finish(axes, "KL from the initial policy", "nats per response")


def _draw_entropy(axes: Axes, rows: Rows) -> None:
    _line(axes, rows, "policy/entropy", "rollouts", BLUE)
    _line(axes, rows, "eval/entropy", "held-out prompts", ORANGE, held_out=True)
    axes.set_ylim(bottom=0)
    _finish(axes, "Entropy of the policy", "nats per token")


def _finish(axes: Axes, title: str, unit: str, *, last: bool = True) -> None:
    tidy(axes, title)
    axes.set_ylabel(unit)
    if last:
        axes.set_xlabel("iteration")
    low, high = axes.get_xlim()
    if high - low < 1:  # a single iteration: nothing between whole ones
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    whole_iterations(axes)


def _single(rows: Rows, draw: Callable[[Axes, Rows], None]) -> Figure:
    figure = new_figure(7.5, 4.2)
    draw(figure.add_subplot(), rows)
    return figure


def overview_figure(rows: Rows) -> Figure:
    """Reward, KL and entropy side by side."""
    figure = new_figure(13, 3.7)
    for axes, draw in zip(figure.subplots(1, 3), (_draw_reward, _draw_kl, _draw_entropy), strict=True):
        draw(axes, rows)
    return figure


def _entropy(rows: Rows) -> Figure:
    figure = new_figure(7.5, 5.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_entropy(above, rows)
    above.set_xlabel("")
    _line(below, rows, "policy/unique_fraction", "rollouts", BLUE)
    _line(below, rows, "eval/unique_fraction", "held-out prompts", ORANGE, held_out=True)
    below.set_ylim(0, 1.05)
    _finish(below, "Different responses", "fraction")
    return figure


def _losses(rows: Rows) -> Figure:
    with_critic = bool(_series(rows, "objective/value_loss")[0])
    figure = new_figure(7.5, 7.2 if with_critic else 3.0)
    policy, *of_critic = figure.subplots(3 if with_critic else 1, 1, sharex=True, squeeze=False)[:, 0]
    _line(policy, rows, "objective/policy_loss", "policy loss", BLUE)
    _finish(policy, "Policy loss", "mean per token", last=not with_critic)
    if with_critic:
        value, explained = of_critic
        _line(value, rows, "objective/value_loss", "value loss", BLUE)
        _finish(value, "Value loss", "½ squared error", last=False)
        _line(explained, rows, "value/explained_variance", "explained variance", BLUE)
        lowest = min([0.0, *_series(rows, "value/explained_variance")[1]])
        explained.set_ylim(max(-1.0, lowest) - 0.05, 1.05)  # a critic at its start can be arbitrarily far below
        _finish(explained, "Explained variance of the returns", "1 = all explained")
    for axes in (policy, *of_critic):
        if legend := axes.get_legend():
            legend.remove()
    return figure
