"""Offline: APA and AWR on the built-in task's logged pairs, beside the initial policy and each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import estimate
from studies import compare, measures
from studies.compare import Row
from studies.draw import COLOURS, EVALUATOR, KL, Line, Panel, curves
from studies.runs import Found, Setting, Size

TITLE = "APA and AWR on logged pairs, without sampling in the loop"
DURATION = "18 runs, about 20 minutes on two CPU cores"
LAMBDAS: Mapping[str, tuple[float, ...]] = {"apa": (0.2, 0.3, 1.0), "awr": (0.3, 0.5, 1.0)}
LOW = 0.5  # nats: a level that every run passes early


def setting(objective: str, kl_lambda: float, iterations: int = 60) -> Setting:
    """The critic alone learns in the first 10 iterations, of few in the first sixth."""
    name = f"{objective}_offline_lambda{kl_lambda:g}"
    keys = {"objective.kl_lambda": kl_lambda, "value.warmup_iterations": min(10, iterations // 6)}
    return Setting(name=name, recipe=f"reviews_{objective}_offline", keys=keys)


def settings(size: Size) -> list[Setting]:
    chosen = {name: lambdas[1:2] if size.quick else lambdas for name, lambdas in LAMBDAS.items()}
    return [setting(name, value, size.iterations) for name, lambdas in chosen.items() for value in lambdas]


def gain(run: Run) -> float | None:
    """Evaluator over the last third of training less that of the policy that training started from."""
    before, after = run.first("eval/evaluator"), measures.tail(run, "eval/evaluator")
    return None if before is None or after is None else after - before


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    cells = [(objective, value) for objective, lambdas in LAMBDAS.items() for value in lambdas]
    found = {cell: mine for cell in cells if (mine := runs[setting(*cell).name])}
    gains = {cell: value for cell, mine in found.items() if (value := estimate(map(gain, mine)))}
    best = {o: max((c for c in gains if c[0] == o), key=lambda c: gains[c].mean, default=None) for o in LAMBDAS}
    names = {cell: f"{cell[0].upper()} (λ {cell[1]:g})" for cell in cells}
    rows = [
        Row(cells=[objective.upper(), f"{value:g}"], name=names[objective, value], runs=mine,
            against=names[best["awr"]] if best["awr"] and (objective, value) == best["apa"] else "")
        for (objective, value), mine in found.items()
    ]  # fmt: skip
    panels = [
        Panel(title=f"{objective.upper()}, logged pairs alone", of=measures.reward_over_kl, x=KL, y=EVALUATOR, lines=[
            Line(label=f"λ {value:g}", colour=colour, runs=found[objective, value])
            for value, colour in zip(lambdas, COLOURS, strict=False) if (objective, value) in found
        ])
        for objective, lambdas in LAMBDAS.items()
    ]  # fmt: skip
    columns = {
        "evaluator before": compare.mean(lambda run: run.first("eval/evaluator")),
        "last third": compare.third("eval/evaluator"),
        "gain": compare.mean(gain),
        "KL, last third": compare.third("eval/kl"),
        "entropy, last third": compare.third("eval/entropy"),
    }
    judged = [value for value in gains.values() if value.half is not None]
    better = sum(value.mean > (value.half or 0.0) for value in judged)
    said = compare.report(
        rows,
        ["objective", "λ"],
        {**columns, **compare.UNIQUE},
        lambda ours, theirs: [*measures.at_common_kl(ours, theirs, low=LOW), measures.LAST_THIRD],
        picture=curves(pictures / "methods_offline.png", "Evaluator against KL", panels, same_y=True),
        note="APA and AWR are compared at the λ with the largest gain of each, and at a KL that all runs of both "
        "reach. Last third: means over the evaluations in the last third of training, which sample from the policy. KL "
        "is in nats per response, entropy in nats per token.",
    )
    first = "- the separate evaluator's reward is significantly above the initial policy's in"
    return [f"{first} {better} of {len(judged)} settings.", *said]
