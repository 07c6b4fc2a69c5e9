"""How every picture of this package looks. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Three hues that stay apart without colour vision (Okabe and Ito), and grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"


def new_figure(width: float, height: float) -> Figure:
    """A figure outside pyplot: no window, no global state, safe in any thread. Inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, title: str | None = None, *, legend: bool = True) -> None:
    """Title, grid and legend, and a word where nothing was measured."""
    if title is not None:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(True, color="#D9D9D9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
    elif legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5)


def whole_iterations(axes: Axes) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
