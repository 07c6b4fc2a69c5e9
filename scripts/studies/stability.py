"""Stable at a small λ: which (λ, learning rate) collapse with the plain squared error, a bound and Huber's form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from apa_cli.tracking.report import format_number
from studies import beside, compare, measures
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size

title = "which (λ, learning rate) collapse, without and with a bound or Huber's form"
duration = "90 runs (6 of them shared with steer), about 80 minutes of one CPU core"
LAMBDAS = (0.03, 0.1, 0.3, 1.0)
RATES = (1e-4, 3e-4, 1e-3)
OPTIONS_BELOW = 1.0  # at this λ and above only the plain form is run: few targets are far
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("squared error", {}),
    "clipped3": ("target_bound 3", {"objective.target_bound": 3.0}),
    "huber1": ("huber_delta 1", {"objective.huber_delta": 1.0}),
}


def setting(variant: str, kl_lambda: float, rate: float) -> Setting:
    if variant == "plain" and rate == RATES[0] and kl_lambda in beside.NEAREST.values():
        return beside.fixed(kl_lambda)
    keys = {"objective.kl_lambda": kl_lambda, "optimizer.learning_rate": rate, **VARIANTS[variant][1]}
    name = f"apa_{variant}_lambda{kl_lambda:g}_lr{rate:g}"
    return Setting(name=name, recipe=beside.RECIPE, keys=keys, evaluations=0)


def settings(size: Size) -> list[Setting]:
    lambdas, rates = (LAMBDAS[1:2], RATES[2:3]) if size.quick else (LAMBDAS, RATES)
    cells = itertools.product(VARIANTS, lambdas, rates)
    return [setting(v, kl_lambda, rate) for v, kl_lambda, rate in cells if v == "plain" or kl_lambda < OPTIONS_BELOW]


def lost(run: Run) -> bool:
    """Collapsed, or no better under the evaluator than before training."""
    before, after = run.first("eval/evaluator"), run.last("eval/evaluator")
    return measures.collapsed(run) or before is None or after is None or after <= before


COLUMNS = {
    "lost": compare.count(lost),
    "evaluator": compare.mean("eval/evaluator"),
    "KL": compare.mean("eval/kl"),
    "targets scaled, last iteration": compare.mean(partial(measures.tail, name="objective/bounded_fraction", part=60)),
}


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    grid = list(itertools.product(LAMBDAS, RATES))
    found = {title: {cell: mine for cell in grid if (mine := runs[setting(variant, *cell).name])}
             for variant, (title, _) in VARIANTS.items()}  # fmt: skip
    found = {title: cells for title, cells in found.items() if cells}
    kept = {title: sum(not any(map(lost, mine)) for mine in cells.values()) for title, cells in found.items()}
    rows = [[title, *(f"{value:g}" for value in cell), *(column(mine) for column in COLUMNS.values())]
            for title, cells in found.items() for cell, mine in cells.items()]  # fmt: skip
    short = [[title, f"{kl_lambda:g}", *(_in_cell(cells.get((kl_lambda, rate), [])) for rate in RATES)]
             for title, cells in found.items() for kl_lambda in LAMBDAS
             if any(value == kl_lambda for value, _ in cells)]  # fmt: skip
    return [
        f"A run counts as lost if it collapsed (entropy at the end below {measures.COLLAPSED_ENTROPY:g} of its initial "
        f"value, or fewer than {measures.COLLAPSED_UNIQUE:.0%} different responses) or if the evaluator's reward did "
        f"not rise. The options were not run at λ {OPTIONS_BELOW:g}, where a target is rarely beyond 3 nats.",
        "",
        *(
            f"- {title}: no seed is lost in {kept[title]} of {len(cells)} cells."
            for title, cells in found.items()
            if cells
        ),
        "",
        "Seeds lost, and the mean evaluator and KL at the end:",
        "",
        *table(["loss", "λ", *(f"learning rate {rate:g}" for rate in RATES)], short),
        "",
        DETAILS,
        f"Evaluator and KL are those at the end of training; {measures.HALF}.",
        "",
        *table(["loss", "λ", "learning rate", *COLUMNS], rows),
    ]


def _in_cell(runs: Sequence[Run]) -> str:
    ends = [value.mean if (value := measures.final(runs, f"eval/{name}")) else None for name in ("evaluator", "kl")]
    ours = f"{sum(map(lost, runs))} of {len(runs)}, {{}} (KL {{}})" if runs else "–"
    return ours.format(*(format_number(end, 2) for end in ends))
