"""KL on target: targets of 2, 5 and 10 nats, from a λ far too high and one far too low, beside fixed λ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Estimate, estimate
from apa_cli.runs.tables import spread
from studies import measures
from studies.draw import COLOURS, Line, Panel, curves
from studies.page import table
from studies.runs import Found, Setting, Size

title = "KL steered to 2, 5 and 10 nats, and fixed λ to compare with"
duration = "36 runs, about 40 minutes of one CPU core"
RECIPE = "reviews_apa"
TARGETS = (2.0, 5.0, 10.0)
STARTS = {"too high": 3.0, "too low": 0.06}
FIXED = (0.06, 0.1, 0.2, 0.3, 0.6, 1.0)
TOLERANCE = 0.15


def steered(target: float, start: float) -> Setting:
    keys = {"objective.kl_target": target, "objective.kl_lambda": start}
    return Setting(name=f"apa_target{target:g}_from{start:g}", recipe=RECIPE, keys=keys)


def fixed(kl_lambda: float) -> Setting:
    return changed(kl_lambda, f"apa_lambda{kl_lambda:g}", {})


def changed(kl_lambda: float, name: str, keys: Mapping[str, Any]) -> Setting:
    return Setting(name=name, recipe=RECIPE, keys={"objective.kl_lambda": kl_lambda, **keys})


def settings(size: Size) -> list[Setting]:
    targets, lambdas = (TARGETS[1:2], FIXED[1:2]) if size.quick else (TARGETS, FIXED)
    return [*(steered(*pair) for pair in itertools.product(targets, STARTS.values())), *map(fixed, lambdas)]


def best_fixed(runs: Found, level: float, seeds: Sequence[int]) -> tuple[float, dict[int, float]] | None:
    """The fixed λ with the highest evaluator reward where its KL first comes to `level`, and that reward by seed.

    Only λ that every seed takes so far are compared; None where there is none.
    """
    found = {}
    for kl_lambda in FIXED:
        rewards = {run.seed: measures.reward_at_kl(run, level) for run in runs[fixed(kl_lambda).name]}
        known = {seed: reward for seed, reward in rewards.items() if reward is not None}
        if set(known) == set(seeds):
            found[kl_lambda] = known
    return max(found.items(), key=lambda item: math.fsum(item[1].values())) if found else None


def _less_best(mine: Sequence[Run], theirs: dict[int, float]) -> Estimate | None:
    rewards = [(run.last("eval/evaluator"), theirs[run.seed]) for run in mine]
    return estimate(ours - other for ours, other in rewards if ours is not None)


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    held = partial(measures.tail, name="kl/to_init")
    rows, within, compared, worse = [], 0, 0, 0
    for target, (way, start) in itertools.product(TARGETS, STARTS.items()):
        mine = runs[steered(target, start).name]
        kl, level = estimate(map(held, mine)), measures.final(mine, "eval/kl")
        if kl is None:
            continue
        inside = abs(kl.mean / target - 1) <= TOLERANCE
        within += inside
        best = best_fixed(runs, level.mean, [run.seed for run in mine]) if level else None
        difference = _less_best(mine, best[1]) if best else None
        if difference is not None:
            compared += 1
            worse += difference.mean + (difference.half or 0.0) < 0
        other = [spread(estimate(best[1].values()), 2), f"{best[0]:g}"] if best else ["–", "–"]
        own = [measures.shown(mine, held), f"{kl.mean / target - 1:+.0%}{'' if inside else ' (out)'}"]
        own += [measures.shown(mine, "eval/kl"), measures.shown(mine, "eval/evaluator")]
        rows.append(
            [f"{target:g}", f"{start:g}, {way}", *own, *other, spread(difference, 2), measures.least_unique(mine)]
        )
    header = ["target", "initial λ", "KL, last third", "deviation", "KL at the end", "evaluator",
              "evaluator, best fixed λ at that KL", "that λ", "difference", "different responses"]  # fmt: skip
    return [
        f"KL over the last third of training is within ±{TOLERANCE:.0%} of its target in {within} of {len(rows)} "
        "settings. At the same KL, the evaluator's reward at the end is significantly lower than with the best fixed λ "
        f"in {worse} of {compared} comparable settings. {measures.HALF}; KL is in nats per response.",
        "",
        *table(header, rows),
        "",
        _picture(runs, pictures),
    ]


def _picture(runs: Found, pictures: Path) -> str:
    """One colour a target, dashed where λ began too low; grey is within the tolerance of a target."""
    drawn = [
        Line(label=f"{target:g} nats, from λ {start:g}", colour=colour, runs=found, style=style)
        for target, colour in zip(TARGETS, COLOURS, strict=False)
        for start, style in zip(STARTS.values(), ("-", "--"), strict=True)
        if (found := runs[steered(target, start).name])
    ]
    kl, knob = (partial(measures.points, x="iteration", y=name) for name in ("kl/to_init", "objective/kl_lambda"))
    bands = [(target * (1 - TOLERANCE), target * (1 + TOLERANCE)) for target in TARGETS]
    left = Panel(title="KL from the initial policy", of=kl, lines=drawn, y="nats per response", bands=bands)
    right = Panel(title="λ", of=knob, lines=drawn, log="y")
    return curves(pictures / "methods_steer.png", "KL and λ over training", [left, right])
