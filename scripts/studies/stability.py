"""Stable at a small λ: which (λ, learning rate) collapse with the plain squared error, a bound and Huber's form."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from apa_cli.tracking.report import format_number
from studies import compare, measures, steer
from studies.draw import heat
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size

TITLE = "which (λ, learning rate) collapse, without and with a bound or Huber's form"
DURATION = "90 runs (9 of them shared with steer), about 80 minutes of one CPU core"
LAMBDAS = (0.03, 0.1, 0.3, 1.0)
RATES = (1e-4, 3e-4, 1e-3)
OPTIONS_BELOW = 1.0  # at this λ and above only the plain form is run: few targets are far
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("squared error", {}),
    "bound3": ("target_bound 3", {"objective.target_bound": 3.0}),
    "huber1": ("huber_delta 1", {"objective.huber_delta": 1.0}),
}
END = measures.Measure(name="evaluator at the end", of=lambda run: run.last("eval/evaluator"))

Cells = Mapping[tuple[float, float], Sequence[Run]]  # by λ and learning rate


def setting(variant: str, kl_lambda: float, rate: float) -> Setting:
    if variant == "plain" and rate == RATES[0] and kl_lambda in steer.FIXED:
        return steer.fixed(kl_lambda)
    keys = {"objective.kl_lambda": kl_lambda, "optimizer.learning_rate": rate, **VARIANTS[variant][1]}
    name = f"apa_{variant}_lambda{kl_lambda:g}_lr{rate:g}"
    return Setting(name=name, recipe=steer.RECIPE, keys=keys, evaluations=0)


def settings(size: Size) -> list[Setting]:
    lambdas, rates = (LAMBDAS[1:2], RATES[2:3]) if size.quick else (LAMBDAS, RATES)
    cells = itertools.product(VARIANTS, lambdas, rates)
    return [setting(v, kl_lambda, rate) for v, kl_lambda, rate in cells if v == "plain" or kl_lambda < OPTIONS_BELOW]


def lost(run: Run) -> bool:
    """Collapsed, or no better under the evaluator than before training."""
    before, after = run.first("eval/evaluator"), run.last("eval/evaluator")
    return measures.collapsed(run) or before is None or after is None or after <= before


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    grid = list(itertools.product(LAMBDAS, RATES))
    found = {v: {cell: mine for cell in grid if (mine := runs[setting(v, *cell).name])} for v in VARIANTS}
    titles = {variant: title for variant, (title, _) in VARIANTS.items()}
    panels = {
        titles[variant]: {cell: (sum(map(lost, mine)) / len(mine), _in_cell(mine)) for cell, mine in cells.items()}
        for variant, cells in found.items()
    }
    columns = {"lost": compare.count(lost), "evaluator": compare.mean("eval/evaluator"), "KL": compare.mean("eval/kl")}
    rows = [[titles[v], *(f"{value:g}" for value in cell), *(column(mine) for column in columns.values())]
            for v, cells in found.items() for cell, mine in cells.items()]  # fmt: skip
    beside = [
        measures.compare(
            (f"{titles[v]} (λ {cell[0]:g}, learning rate {cell[1]:g})", mine), (titles["plain"], plain), END
        )
        for v, cells in found.items()
        for cell, mine in cells.items()
        if v != "plain" and (plain := found["plain"].get(cell)) and not any(map(lost, (*mine, *plain)))
    ]
    return [
        f"A run counts as lost if it collapsed (entropy at the end below {measures.COLLAPSED_ENTROPY:g} of its initial "
        f"value, or fewer than {measures.COLLAPSED_UNIQUE:.0%} different responses) or if the evaluator's reward did "
        f"not rise. The options were not run at λ {OPTIONS_BELOW:g}, where a target is rarely beyond 3 nats.",
        "",
        *(_stable(titles[variant], cells) for variant, cells in found.items()),
        "",
        heat(pictures / "methods_stability.png", "Share of seeds lost", panels, LAMBDAS, RATES,
             names=("λ", "learning rate", "share of seeds lost"),
             below="–: not run; in each cell: evaluator and KL at the end, means over seeds"),
        "",
        DETAILS,
        f"Evaluator and KL are those at the end of training; {measures.HALF}. Cells are compared where neither form "
        "loses a seed.",
        "",
        *table(["loss", "λ", "learning rate", *columns], rows),
        "",
        *(f"- {difference.sentence()}" for difference in beside),
    ]  # fmt: skip


def _in_cell(runs: Sequence[Run]) -> str:
    values = [measures.final(runs, f"eval/{name}") for name in ("evaluator", "kl")]
    return "{}\nKL {}".format(*(format_number(value.mean if value else None, 2) for value in values))


def _stable(title: str, cells: Cells) -> str:
    """In how many cells no seed is lost, the best of them, and how many targets the bound cut at the end by λ."""
    stable = {
        cell: value
        for cell, mine in cells.items()
        if not any(map(lost, mine)) and (value := measures.final(mine, "eval/evaluator"))
    }
    best = max(stable, key=lambda cell: stable[cell].mean, default=None)
    where = (
        f"; the best of them reaches {stable[best].mean:.2f} at λ {best[0]:g}, learning rate {best[1]:g}"
        if best
        else ""
    )
    cut: dict[float, list[float]] = {}
    for (kl_lambda, _), mine in cells.items():
        shares = [run.rows[-1].get("objective/bounded_fraction") for run in mine]
        cut.setdefault(kl_lambda, []).extend(share for share in shares if share is not None)
    words = ", ".join(f"{statistics.fmean(shares):.0%} at λ {value:g}" for value, shares in cut.items() if shares)
    words = f"; share of targets clipped in the last iteration: {words}" if words else ""
    return f"- {title}: no seed is lost in {len(stable)} of {len(cells)} cells{where}{words}."
