"""The presets of configs/objective/ and TRL's GRPO on the built-in task, tuned alike over grids of equal size.

A preset is run as it is, with the sizes of the built-in recipe; TRL's trainer with the same sizes and its own defaults.
Comparisons are with APA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from apa_cli.config.compose import compose_train
from apa_cli.config.schema import TrainConfig
from studies import compare, measures
from studies.draw import EVALUATOR, KL, Panel, curves
from studies.measures import Measure
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import HEADER, Contestant, Grid

PAGE = "docs/family.md"
title = "the presets of configs/objective/ and TRL's GRPO, tuned alike"
duration = "84 runs: 48 to tune, 36 with the chosen settings, 7 of them TRL's; about 100 minutes of one CPU core"
RECIPE = "reviews_apa"
PRESETS = ("apa", "awr", "ppo", "grpo", "dr_grpo", "rloo", "dro", "pmd_mean", "gvpo", "a_star_po", "qrpo")
TRL = "TRL's GRPO"
RATES = (1e-4, 3e-4)
LAMBDA, COEF = ("λ", "objective.kl_lambda"), ("β", "objective.kl_coef")
KNOBS = {"apa": (*LAMBDA, (0.1, 0.3)), "awr": (*LAMBDA, (1.0, 2.0)), "ppo": (*COEF, (0.05, 0.2)),
         "grpo": (*COEF, (0.05, 0.2))}  # fmt: skip
VALUES = {"qrpo": (0.03, 0.1),  # quantiles spread over 0.3, scores over about 1
          "dr_grpo": (0.0, 0.05)}  # published without a KL penalty  # fmt: skip


@cache
def composed(preset: str) -> TrainConfig:
    """Raises UserError if there is no such preset."""
    return compose_train([f"config={RECIPE}", f"objective={preset}"])


def contestant(preset: str) -> Contestant:
    knob, key, values = KNOBS[composed(preset).objective.name]
    values = VALUES.get(preset, values)
    return Contestant(title=preset, stem=f"family_{preset}", knob=knob, key=key, values=values, recipe=RECIPE,
                      objective=preset)  # fmt: skip


def grid(size: Size, presets: Sequence[str] = ()) -> Grid:
    """Of all and TRL's GRPO, with the sizes and the grid of the preset grpo; or of these presets alone."""
    trl = replace(contestant("grpo"), title=TRL, stem="family_trl_grpo", trl=True)
    contestants = [*map(contestant, presets or PRESETS), *([] if presets else [trl])]
    return Grid(contestants=contestants, rates=RATES[:1] if size.quick else RATES)


def settings(size: Size) -> list[Setting]:
    return grid(size).settings()


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    return grid(size).stages(size, read)


END = [Measure(name=f"{title} at the end", of=lambda run, name=name: run.last(f"eval/{name}"), digits=3)  # type: ignore[misc]
       for title, name in (("entropy", "entropy"), ("different responses", "unique_fraction"),
                           ("distinct-2", "distinct_2"))]  # fmt: skip
COLUMNS = {
    **compare.LAST_THIRD,
    **{each.name: compare.mean(each.of, each.digits) for each in (measures.OVER_TRAINING, *END)},
    **compare.SECONDS,
    "collapsed": compare.count(measures.collapsed),
}


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    rows = grid(size).rows(found)
    common = {"lines": [line for _, line in rows], "mean_only": True}
    over = partial(partial, measures.points, x="iteration")
    panels = [
        Panel(title="Evaluator against KL", of=measures.reward_over_kl, x=KL, y=EVALUATOR, **common),
        Panel(title="Per rollout", of=measures.reward_over_rollouts, x="responses sampled", y=EVALUATOR, **common),
        Panel(title="Entropy", of=over(y="eval/entropy"), y="nats per token", **common),
        Panel(title="Distinct-2", of=over(y="eval/distinct_2"), y="different bigrams / bigrams", **common),
    ]
    said = compare.report(
        [row for row, _ in rows],
        HEADER,
        COLUMNS,
        lambda ours, theirs: [*measures.at_common_kl(ours, theirs), measures.OVER_TRAINING, *END],
        picture=curves(pictures / "methods_family.png", "Evaluator, entropy and distinct-2", panels),
        note="Lines are means over seeds. KL is in nats per response, entropy in nats per token; equal KL is the "
        "highest multiple of half a nat that all runs of both settings reach."
        + ("" if any(row.name == TRL for row, _ in rows) else " TRL's GRPO was not run: trl is not installed here."),
    )
    return [*said, "", *grid(size).table(found)]
