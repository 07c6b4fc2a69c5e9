"""The presets of configs/objective/ on the built-in task, tuned alike: learning rate and KL knob, grids of equal size.

A preset is run as it is, with the sizes of the built-in recipe. Comparisons are with APA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from apa_cli.config.compose import compose_train
from apa_cli.config.schema import TrainConfig
from apa_cli.runs.folders import Run
from studies import measures
from studies.draw import COLOURS, EVALUATOR, KL, Line, Panel, curves
from studies.measures import Measure
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import TUNING_SEED, Contestant, Grid

TITLE = "the presets of configs/objective/, tuned alike"
DURATION = "77 runs: 44 to tune, 33 with the chosen settings; about 90 minutes of one CPU core"
RECIPE = "reviews_apa"
PRESETS = ("apa", "awr", "ppo", "grpo", "dr_grpo", "rloo", "dro", "pmd_mean", "gvpo", "a_star_po", "qrpo")
RATES = (1e-4, 3e-4)
LAMBDA, COEF = ("λ", "objective.kl_lambda"), ("β", "objective.kl_coef")
KNOBS = {"apa": (*LAMBDA, (0.1, 0.3)), "awr": (*LAMBDA, (1.0, 2.0)), "ppo": (*COEF, (0.05, 0.2)),
         "grpo": (*COEF, (0.05, 0.2))}  # fmt: skip
VALUES = {"qrpo": (0.03, 0.1)}  # quantiles spread over 0.3, scores over about 1
STYLES = ("-", "--", ":")


@cache
def composed(preset: str) -> TrainConfig:
    """Raises UserError if there is no such preset."""
    return compose_train([f"config={RECIPE}", f"objective={preset}"])


def contestant(preset: str) -> Contestant:
    knob, key, values = KNOBS[composed(preset).objective.name]
    values = VALUES.get(preset, values)
    colour = COLOURS[PRESETS.index(preset) % len(COLOURS)]
    return Contestant(title=preset, stem=f"family_{preset}", knob=knob, key=key, values=values, recipe=RECIPE,
                      objective=preset, colour=colour)  # fmt: skip


def grid(size: Size, presets: Sequence[str] = ()) -> Grid:
    return Grid(
        contestants=[contestant(preset) for preset in presets or PRESETS], rates=RATES[:1] if size.quick else RATES
    )


def settings(size: Size) -> list[Setting]:
    return grid(size).settings()


def planned(size: Size) -> int:
    return len(settings(size)) + len(PRESETS) * len(size.seeds)


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    yield settings(size), [TUNING_SEED]
    yield [each.setting(cell) for each, (cell, _) in grid(size).chosen(read()).items()], size.seeds


END = [Measure(name=title, of=lambda run, name=name: run.last(f"eval/{name}"), digits=3)  # type: ignore[misc]
       for title, name in (("entropy", "entropy"), ("different responses", "unique_fraction"),
                           ("distinct-2", "distinct_2"))]  # fmt: skip
COLUMNS = [
    measures.LAST_THIRD,
    Measure(name="KL, last third", of=partial(measures.tail, name="eval/kl")),
    measures.OVER_TRAINING,
    *(Measure(name=f"{each.name} at the end", of=each.of, digits=3) for each in END),
    Measure(name="CPU seconds per iteration", of=partial(measures.typical, name="time/cpu")),
]


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    cells = grid(size)
    chosen = cells.chosen(found)
    fresh = {each: runs for each, (cell, _) in chosen.items() if (runs := cells.fresh(found, each, cell))}
    header = ["preset", "learning rate", "knob", *(each.name for each in COLUMNS), "collapsed"]
    rows = []
    for each, runs in fresh.items():
        (rate, value), free = chosen[each]
        figures = [measures.shown(runs, column.of, column.digits) for column in COLUMNS]
        note = "" if free else ", all collapsed"
        gone = f"{sum(map(measures.collapsed, runs))} of {len(runs)}"
        rows.append([each.title, f"{rate:g}", f"{each.said(value)}{note}", *figures, gone])
    picture = curves(pictures / "methods_family.png", "Evaluator, entropy and distinct-2", _panels(fresh))
    return [
        *_compared(fresh),
        "",
        picture,
        "",
        f"Lines are means over seeds. {measures.HALF}; KL is in nats per response, entropy in nats per token.",
        "",
        DETAILS,
        *table(header, rows),
        "",
        *_sentences(fresh),
        "",
        *table(*cells.table(found)),
    ]


def _questions(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[str, list[Measure]]:
    level = measures.common_level(ours, theirs)
    return {
        "Evaluator at the highest KL that all runs of both reach": [measures.at_kl(level)] if level else [],
        "Evaluator per rollout (mean over training)": [measures.OVER_TRAINING],
        "Entropy at the end": END[:1],
        "Different responses at the end": END[1:2],
        "Distinct-2 at the end": END[2:],
    }


def _pairs(fresh: Mapping[Contestant, Sequence[Run]]) -> list[tuple[str, measures.Difference]]:
    """(question, difference from APA) of every other preset."""
    apa = next(((each.title, runs) for each, runs in fresh.items() if each.title == PRESETS[0]), None)
    return [
        (question, measures.compare((each.title, runs), apa, what))
        for each, runs in fresh.items()
        if apa and each.title != apa[0]
        for question, asked in _questions(runs, apa[1]).items()
        for what in asked
    ]


def _sentences(fresh: Mapping[Contestant, Sequence[Run]]) -> list[str]:
    return [f"- {difference.sentence()}" for _, difference in _pairs(fresh)]


def _compared(fresh: Mapping[Contestant, Sequence[Run]]) -> list[str]:
    """A line for each question: which presets are significantly higher or lower than APA."""
    answers: dict[str, dict[str, list[str]]] = {}
    for question, difference in _pairs(fresh):
        way = {1: "higher than apa", -1: "lower than apa", 0: "no significant difference"}[difference.sign]
        way = way if difference.judged else "not comparable"
        answers.setdefault(question, {}).setdefault(way, []).append(difference.ours)
    return [
        f"- {question}: {'; '.join(f'{way}: ' + ', '.join(names) for way, names in ways.items())}."
        for question, ways in answers.items()
    ] or ["Nothing to compare yet: it takes runs of apa and another preset with fresh seeds."]


def _panels(fresh: Mapping[Contestant, Sequence[Run]]) -> list[Panel]:
    drawn = [Line(label=each.title, colour=each.colour, runs=runs,
                  style=STYLES[PRESETS.index(each.title) // len(COLOURS)]) for each, runs in fresh.items()]  # fmt: skip
    common = {"lines": drawn, "mean_only": True}
    over = {name: partial(measures.points, x="iteration", y=f"eval/{name}") for name in ("entropy", "distinct_2")}
    return [
        Panel(title="Evaluator against KL", of=measures.reward_over_kl, x=KL, y=EVALUATOR, **common),
        Panel(title="Per rollout", of=measures.reward_over_rollouts, x="responses sampled", y=EVALUATOR, **common),
        Panel(title="Entropy", of=over["entropy"], y="nats per token", **common),
        Panel(title="Distinct-2", of=over["distinct_2"], y="different bigrams / bigrams", **common),
    ]
