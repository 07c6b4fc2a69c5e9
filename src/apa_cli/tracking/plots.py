"""Plots of a run's metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apa_cli.tracking.metrics import read_metrics
from apa_cli.tracking.style import BLUE, GREEN, GREY, ORANGE, new_figure, over_iterations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS_FOLDER = "plots"
HELD_OUT = "o-"

Rows = Sequence[Mapping[str, "float | None"]]

# Title, unit, and of each line its metric, label, colour and style.
_PANELS: dict[str, tuple[str, str, list[tuple[str, str, str, str]]]] = {
    "reward": ("Reward", "reward per response", [
        ("reward/mean", "rollouts, mean", BLUE, "-"),
        ("eval/reward", "held-out prompts", ORANGE, HELD_OUT),
        ("eval/evaluator", "held-out, separate evaluator", GREEN, HELD_OUT),
    ]),
    "kl": ("KL from the initial policy", "nats per response", [
        ("kl/to_init", "k1, rollouts", BLUE, "-"),
        ("kl/to_init_k3", "k3, rollouts", GREY, "--"),
        ("eval/kl", "k1, held-out prompts", ORANGE, HELD_OUT),
    ]),
    "entropy": ("Entropy of the policy", "nats per token", [
        ("policy/entropy", "rollouts", BLUE, "-"),
        ("eval/entropy", "held-out prompts", ORANGE, HELD_OUT),
    ]),
    "different": ("Different responses", "fraction", [
        ("policy/unique_fraction", "rollouts", BLUE, "-"),
        ("eval/unique_fraction", "held-out prompts", ORANGE, HELD_OUT),
    ]),
    "policy_loss": ("Policy loss", "mean per token", [("objective/policy_loss", "", BLUE, "-")]),
    "value_loss": ("Value loss", "½ squared error", [("objective/value_loss", "", BLUE, "-")]),
    "explained": ("Explained variance of the returns", "1 = all explained", [
        ("value/explained_variance", "", BLUE, "-"),
    ]),
}  # fmt: skip


def draw_run(run_dir: Path) -> list[Path]:
    """Write plots/*.png of a run's folder and return their paths, overview first; [] without metrics."""
    rows = read_metrics(run_dir)
    if not rows:
        return []
    folder = run_dir / PLOTS_FOLDER
    folder.mkdir(exist_ok=True)
    critic = ("value_loss", "explained") if _series(rows, "objective/value_loss")[0] else ()
    figures = {
        "overview": overview_figure(rows),
        "reward": _column(rows, 4.2, "reward"),
        "kl": _column(rows, 4.2, "kl"),
        "entropy": _column(rows, 5.4, "entropy", "different", ratios=(2, 1)),
        "losses": _column(rows, 7.2 if critic else 3.0, "policy_loss", *critic),
    }
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path)
    return paths


def overview_figure(rows: Rows) -> Figure:
    """Reward, KL and entropy side by side."""
    figure = new_figure(13, 3.7)
    for axes, name in zip(figure.subplots(1, 3), ("reward", "kl", "entropy"), strict=True):
        _draw(axes, rows, name)
    return figure


def _column(rows: Rows, height: float, *names: str, ratios: tuple[int, ...] | None = None) -> Figure:
    figure = new_figure(7.5, height)
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, rows, name)
        axes.label_outer()
    return figure


def _draw(axes: Axes, rows: Rows, panel: str) -> None:
    title, unit, lines = _PANELS[panel]
    if panel == "reward":
        _band(axes, rows)
    for name, label, colour, style in lines:
        x, y = _series(rows, name)
        if x:
            axes.plot(x, y, style if len(x) > 1 else HELD_OUT, color=colour, label=label, markersize=4)
    if panel == "kl" and axes.lines:
        axes.axhline(0, color="black", linewidth=0.8, alpha=0.5)
    elif panel == "entropy":
        axes.set_ylim(bottom=0)
    elif panel == "different":
        axes.set_ylim(0, 1.05)
    elif panel == "explained":
        lowest = min([0.0, *_series(rows, "value/explained_variance")[1]])
        axes.set_ylim(max(-1.0, lowest) - 0.05, 1.05)  # a critic at its start can be arbitrarily far below
    over_iterations(axes, title, unit)


def _band(axes: Axes, rows: Rows) -> None:
    """One standard deviation of the rollouts' rewards on either side of their mean."""
    both = [row for row in rows if row.get("reward/mean") is not None and row.get("reward/std") is not None]
    (x, mean), (_, std) = _series(both, "reward/mean"), _series(both, "reward/std")
    if len(x) > 1:
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="± 1 deviation")


def _series(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """Iterations and finite values of one metric; rows without it are left out."""
    points = [(row["iteration"], row.get(name)) for row in rows]
    finite = [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]
