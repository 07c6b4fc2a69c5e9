"""Stable at a small λ: which (λ, learning rate) collapse with the plain squared error, a bound and Huber's form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import estimate
from apa_cli.runs.tables import spread
from apa_cli.tracking.pages import format_number
from apa_cli.tracking.style import new_figure
from studies import steer
from studies.beside import measure, paired, same
from studies.comparison import COLLAPSED_ENTROPY, COLLAPSED_UNIQUE, collapsed
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size

TITLE = "which (λ, learning rate) collapse, without and with a bound or Huber's form"
DURATION = "90 runs (9 of them shared with steer), about 80 minutes of one CPU core"
RECIPE = "reviews_apa"
LAMBDAS = (0.03, 0.1, 0.3, 1.0)
RATES = (1e-4, 3e-4, 1e-3)
OPTIONS_BELOW = 1.0  # at this λ and above only the plain form is run: few targets are far
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bound3": {"objective.target_bound": 3.0},
    "huber1": {"objective.huber_delta": 1.0},
}
TITLES = {"plain": "squared error", "bound3": "target_bound 3", "huber1": "huber_delta 1"}


END = measure("evaluator at the end", lambda run: run.last("eval/evaluator"))


def setting(variant: str, kl_lambda: float, rate: float) -> Setting:
    if variant == "plain" and rate == RATES[0] and kl_lambda in steer.FIXED:
        return steer.fixed(kl_lambda)
    keys = {"objective.kl_lambda": kl_lambda, "optimizer.learning_rate": rate, **VARIANTS[variant]}
    name = f"apa_{variant}_lambda{kl_lambda:g}_lr{rate:g}"
    return Setting(name=name, recipe=RECIPE, keys=keys, evaluations=0)


def settings(size: Size) -> list[Setting]:
    lambdas, rates = (LAMBDAS[1:2], RATES[2:3]) if size.quick else (LAMBDAS, RATES)
    cells = itertools.product(VARIANTS, lambdas, rates)
    return [setting(v, kl_lambda, rate) for v, kl_lambda, rate in cells if v == "plain" or kl_lambda < OPTIONS_BELOW]


def lost(run: Run) -> bool:
    """Collapsed, or no better under the evaluator than before training."""
    before, after = run.first("eval/evaluator"), run.last("eval/evaluator")
    return collapsed(run) or before is None or after is None or after <= before


def share(runs: Sequence[Run]) -> float | None:
    """Of the runs that were lost; None where there are none."""
    return sum(map(lost, runs)) / len(runs) if runs else None


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    grid = list(itertools.product(LAMBDAS, RATES))
    header = [
        "λ",
        "learning rate",
        *(f"{TITLES[v]}: {what}" for v in VARIANTS for what in ("lost", "evaluator", "KL")),
    ]
    rows, summary = [], []
    for kl_lambda, rate in grid:
        row = [f"{kl_lambda:g}", f"{rate:g}"]
        for variant in VARIANTS:
            mine = runs[setting(variant, kl_lambda, rate).name]
            row += [f"{sum(map(lost, mine))} of {len(mine)}" if mine else "–"]
            row += [spread(estimate(run.last(f"eval/{name}") for run in mine), 2) for name in ("evaluator", "kl")]
        if any(runs[setting(variant, kl_lambda, rate).name] for variant in VARIANTS):
            rows.append(row)
    for variant in VARIANTS:
        cells = {cell: found for cell in grid if (found := runs[setting(variant, *cell).name])}
        stable = [cell for cell, found in cells.items() if not any(map(lost, found))]
        means = {
            cell: value.mean for cell in stable if (value := estimate(r.last("eval/evaluator") for r in cells[cell]))
        }
        best = max(means, key=lambda cell: means[cell], default=None)
        where = (
            f"; the best of them reaches {means[best]:.2f} at λ {best[0]:g}, learning rate {best[1]:g}" if best else ""
        )
        summary.append(
            f"- {TITLES[variant]}: no seed is lost in {len(stable)} of {len(cells)} cells{where}{_cut(cells)}."
        )
    summary += [line for variant in list(VARIANTS)[1:] if (line := _beside_plain(runs, variant))]
    picture = draw(runs, pictures / "methods_stability.png")
    return [
        f"A run counts as lost if it collapsed (entropy at the end below {COLLAPSED_ENTROPY:g} of its initial value, "
        f"or fewer than {COLLAPSED_UNIQUE:.0%} different responses) or if the evaluator's reward did not rise.",
        "",
        *summary,
        "",
        f"![Share of seeds lost](images/{picture.name})",
        "",
        f"The options were not run at λ {OPTIONS_BELOW:g}, where a target is rarely beyond 3 nats. The highest "
        "learning rate up to which no seed is lost:",
        "",
        *table(["λ", *TITLES.values()], _limits(runs)),
        "",
        DETAILS,
        "Evaluator and KL are those at the end of training; ± is half the width of a 95 % interval over seeds.",
        "",
        *table(header, rows),
    ]


def _limits(runs: Found) -> list[list[str]]:
    rows = []
    for kl_lambda in LAMBDAS:
        row = [f"{kl_lambda:g}"]
        for variant in VARIANTS:
            cells = [(rate, mine) for rate in RATES if (mine := runs[setting(variant, kl_lambda, rate).name])]
            kept = [rate for rate, _ in itertools.takewhile(lambda cell: not any(map(lost, cell[1])), cells)]
            row.append(f"{kept[-1]:g}" if kept else "none" if cells else "–")
        rows.append(row)
    return rows


def _beside_plain(runs: Found, variant: str) -> str | None:
    """Where the option keeps what the plain form loses, or loses what that keeps, and what it costs elsewhere."""
    saved, broken, both, higher, lower = [], [], 0, 0, 0
    for kl_lambda, rate in itertools.product(LAMBDAS, RATES):
        plain, mine = (runs[setting(name, kl_lambda, rate).name] for name in ("plain", variant))
        if not (plain and mine):
            continue
        cell = f"λ {kl_lambda:g} with {rate:g}"
        if any(map(lost, plain)) and not any(map(lost, mine)):
            saved.append(cell)
        elif any(map(lost, mine)) and not any(map(lost, plain)):
            broken.append(cell)
        elif not any(map(lost, [*plain, *mine])):
            both += 1
            difference = paired((variant, mine), ("plain", plain), END)
            if same(difference) is False and difference.value:
                higher += difference.value.mean > 0
                lower += difference.value.mean < 0
    if not (saved or broken or both):
        return None
    return (
        f"- {TITLES[variant]} compared with the squared error: it alone loses no seed in {_named(saved)}, and it alone "
        f"loses some in {_named(broken)}. Where neither loses any, the evaluator's reward at the end is significantly "
        f"higher in {higher} of {both} cells, lower in {lower}."
    )


def _named(cells: Sequence[str]) -> str:
    return f"{len(cells)} cell{'s' * (len(cells) > 1)} ({'; '.join(cells)})" if cells else "no cell"


def _cut(cells: dict[tuple[float, float], list[Run]]) -> str:
    """How many targets the bound cut at the end, from the smallest λ to the largest."""
    found = {}
    for (kl_lambda, _), runs in cells.items():
        shares = [run.rows[-1].get("objective/bounded_fraction") for run in runs]
        found.setdefault(kl_lambda, []).extend(share for share in shares if share is not None)
    words = [f"{sum(shares) / len(shares):.0%} at λ {kl_lambda:g}" for kl_lambda, shares in found.items() if shares]
    return f"; share of targets clipped in the last iteration: {', '.join(words)}" if words else ""


def draw(runs: Found, path: Path) -> Path:
    """A heat map a variant: the share of seeds that were lost; evaluator and KL at the end written into the cells."""
    figure = new_figure(12.5, 4.4)
    panels = figure.subplots(1, len(VARIANTS), sharey=True)
    for axes, variant in zip(panels, VARIANTS, strict=True):
        cells = [[runs[setting(variant, kl_lambda, rate).name] for rate in RATES] for kl_lambda in LAMBDAS]
        shares = [[float("nan") if (part := share(cell)) is None else part for cell in row] for row in cells]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="Reds", aspect="auto")
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                reward, kl = (estimate(run.last(f"eval/{name}") for run in cell) for name in ("evaluator", "kl"))
                numbers = [format_number(value.mean if value else None, 2) for value in (reward, kl)]
                text = "{}\nKL {}".format(*numbers)
                dark = (share(cell) or 0.0) > 0.6
                axes.text(
                    x,
                    y,
                    text if cell else "–",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if dark else "black",
                )
        axes.set_title(TITLES[variant], loc="left", fontsize=11, fontweight="bold")
        axes.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
        axes.set_yticks(range(len(LAMBDAS)), [f"{kl_lambda:g}" for kl_lambda in LAMBDAS])
        axes.set_xlabel("learning rate")
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("λ")
    figure.colorbar(image, ax=list(panels), label="share of seeds lost")
    figure.supxlabel(
        "–: not run; in each cell: evaluator and KL at the end, means over seeds",
        fontsize=8.5,
        color="#555555",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
