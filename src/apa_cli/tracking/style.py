"""The style of all plots. matplotlib is imported on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apa_cli.tracking.pages import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Three hues that stay apart without colour vision (Okabe and Ito), and grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"
LEGEND_ROWS = 8


def new_figure(width: float, height: float) -> Figure:
    """A figure outside pyplot: no window, no global state, safe in any thread. Inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, title: str | None = None, *, legend: bool = True) -> None:
    """Title, grid and legend, and a note if nothing was measured."""
    if title is not None:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(True, color="#D9D9D9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
    elif legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5)


def over_iterations(axes: Axes, title: str | None, unit: str, *, legend: bool = True) -> None:
    """Finish a panel whose lines run over iterations."""
    tidy(axes, title, legend=legend)
    axes.set_xlabel("iteration")
    axes.set_ylabel(unit)
    low, high = axes.get_xlim()
    if high - low < 1:  # a single iteration: nothing between whole ones
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    whole_iterations(axes)


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Under all panels, at most `LEGEND_ROWS` high: what does not fit is cut in the middle, and then counted."""
    if not labels:
        return
    from matplotlib.lines import Line2D

    room = int(figure.get_figwidth() / 0.07)  # characters
    widest = max(map(len, labels)) + 8
    columns = max(1, min(4, max(room // widest, math.ceil(len(labels) / LEGEND_ROWS))))
    texts, shown = [shortened(label, room // columns - 8) for label in labels], list(handles)
    if (left := len(texts) - columns * LEGEND_ROWS) > 0:
        texts[-left - 1 :] = [f"… and {left + 1} more (see the table)"]
        shown[-left - 1 :] = [Line2D([], [], linestyle="")]
    legend = figure.legend(shown, texts, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    for text in legend.get_texts():
        text.set_parse_math(False)  # $ is literal


def whole_iterations(axes: Axes) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
