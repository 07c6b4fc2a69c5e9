"""APA beside PPO and AWR, tuned alike, and what the runs say about the paper's four claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from apa_cli.runs.figures import frontier
from apa_cli.runs.settings import Setting as End
from studies import compare, draw, measures
from studies.compare import count, mean
from studies.draw import COLOURS, Line, Panel
from studies.measures import Measure
from studies.page import table
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import HEADER, TUNING_SEED, Contestant, Grid

TITLE = "APA beside PPO and AWR, tuned alike: the paper's four claims (docs/results.md)"
DURATION = "60 runs, 35 to 45 minutes on two CPU cores"
PAGE = "docs/results.md"
SEEDS, QUICK_SEEDS = 5, 2
KNOBS = {"apa": ("λ", "kl_lambda", (0.1, 0.3, 1.0)), "ppo": ("β", "kl_coef", (0.02, 0.05, 0.2)),
         "awr": ("λ", "kl_lambda", (0.5, 1.0, 2.0))}  # fmt: skip
RATES, REWARDS = (3e-5, 1e-4, 3e-4), (1.0, 1.5)
KL_LEVELS = (2.0, 5.0, 10.0)  # nats per response
CLAIMS = (
    "(a) at the same KL from the initial policy, APA earns more of the evaluator's reward;",
    "(b) APA stays closer to the initial policy, and moves away from it more steadily;",
    "(c) APA keeps more entropy and more different responses;",
    "(d) APA reaches a higher reward with the same number of sampled responses.",
)
NOTE = (
    "Rule, fixed before the runs: of the tuning grid (one seed, the same learning rates for every objective), the "
    "setting with the highest evaluator reward at the end that did not collapse. Collapsed means an entropy below "
    f"{measures.COLLAPSED_ENTROPY:g} of its initial value, or fewer than {measures.COLLAPSED_UNIQUE:.0%} different "
    "responses. Comparisons are on fresh seeds, paired by seed: significant is a 95 % interval (Student's t) that is "
    "entirely on one side of zero. KL is the k1 estimate, in nats per response."
)
LIMITS = (
    "One task and one policy: the results say nothing about other models, prompts or rewards.",
    "The separate evaluator is a proxy too: it does not replace human judgement.",
    "Each comparison is at 95 %, without correction: if all true differences were zero, one in 20 of them would still "
    "be called significant.",
    "Settings were chosen with one seed from a small grid. Fresh seeds keep that luck out of the figures, not out of "
    "the choice. Knobs of different objectives have no common scale.",
    "Reward at equal KL is interpolated linearly between two evaluations, at the first crossing. Seeds that do not "
    "reach a level are left out there, and only pairs in which both reach it are compared.",
    "Less KL is not better in itself: read (b) together with (a).",
)


CONTESTANTS = [
    Contestant(title=objective.upper(), stem=objective, knob=knob, key=f"objective.{key}", values=values, colour=colour,
               recipe=f"reviews_{objective}", keys={"objective.kl_target": None})
    for (objective, (knob, key, values)), colour in zip(KNOBS.items(), COLOURS, strict=False)
]  # fmt: skip
GRID = Grid(contestants=CONTESTANTS, rates=RATES)
QUICK = Grid(contestants=[replace(c, values=c.values[:2]) for c in CONTESTANTS], rates=RATES[1:2])


def grid(size: Size) -> Grid:
    return QUICK if size.quick else GRID


def settings(size: Size) -> list[Setting]:
    return grid(size).settings()


def seeds_of_others(size: Size) -> Sequence[int]:
    """Of the knobs that were not chosen: they show the trade-off, and no claim rests on them."""
    return size.seeds[: max(2, len(size.seeds) - 2)]


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    """Tune each objective on one seed; then the chosen settings with fresh seeds, and their other knobs with fewer."""
    yield settings(size), [TUNING_SEED]
    chosen = {each: cell for each, (cell, _) in grid(size).chosen(read()).items()}
    yield [each.setting(cell) for each, cell in chosen.items()], size.seeds
    others = [(each, (rate, v)) for each, (rate, value) in chosen.items() for v in each.values if v != value]
    yield [each.setting(cell) for each, cell in others], seeds_of_others(size)


def last(name: str) -> measures.Of:
    return lambda run: run.last(f"eval/{name}")


MEASURES = [
    Measure(name=f"({name}", of=of, digits=digits, unit=unit)
    for name, of, digits, unit in (
        *((f"a) evaluator at {level:g} nats", partial(measures.reward_at_kl, level=level), 2, "")
          for level in KL_LEVELS),
        ("b) KL at the end", partial(measures.tail, name="kl/to_init", part=10), 2, " nats"),
        ("b) back-and-forth of KL", measures.back_and_forth, 3, " nats"),
        ("c) entropy at the end", last("entropy"), 3, " nats"),
        ("c) different responses at the end", last("unique_fraction"), 3, ""),
        ("c) distinct-2 at the end", last("distinct_2"), 3, ""),
        ("d) evaluator, mean over training", measures.over_training, 2, ""),
        *((f"d) responses sampled until evaluator {level:g}", partial(measures.cost_until, level=level), 0, "")
          for level in REWARDS),
    )
]  # fmt: skip
COLUMNS = {
    **{title: mean(f"eval/{name}") for title, name in (("evaluator", "evaluator"), ("reward", "reward"), ("KL", "kl"))},
    "collapsed": count(measures.collapsed),
    "seeds": lambda runs: ", ".join(str(run.seed) for run in runs),
}


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    cells, knobs = grid(size), []
    tuned = cells.tuned_rows(found, CONTESTANTS[0].title)
    for each, ((rate, _), _) in cells.chosen(found).items():
        others = {value: cells.fresh(found, each, (rate, value)) for value in each.values}
        knobs += [(each.title, each.said(value), runs) for value, runs in others.items() if runs]
    ends = [End(line=title, knob=knob, runs=tuple(runs)) for title, knob, runs in knobs]
    more = ["At the end of training, for each KL knob at the chosen learning rate:", ""]
    more += table(["", "knob", *COLUMNS], [[*names, *(of(runs) for of in COLUMNS.values())] for *names, runs in knobs])
    more += ["", draw.save(frontier(ends), pictures / "results_frontier.png", "Reward against KL at the end"), ""]
    first, *curves = _curves([line for _, line in tuned], pictures)
    said = compare.report(
        [row for row, _ in tuned],
        HEADER,
        {each.name: mean(each.of, each.digits) for each in MEASURES},
        lambda ours, theirs: MEASURES,
        picture=first,
        note=NOTE,
        more=[*more, *curves, "", *(f"- {line}" for line in LIMITS), ""],
    )
    claims = ["The paper claims:", "", *(f"- {claim}" for claim in CLAIMS), "", "These runs, on fresh seeds:", ""]
    return [*claims, *said, "", *table(*cells.table(found))]


def _curves(lines: Sequence[Line], pictures: Path) -> list[str]:
    def over_training(metric: str, title: str, unit: str) -> Panel:
        return Panel(title=title, of=partial(measures.points, x="iteration", y=metric), lines=lines, y=unit)

    made = {
        "Separate evaluator against KL": ("reward_kl", [
            Panel(title="Tuned settings", of=measures.reward_over_kl, lines=lines, x=draw.KL, y=draw.EVALUATOR)]),
        "KL over training": ("kl", [over_training("kl/to_init", "KL from the initial policy", "nats per response")]),
        "Collapse": ("collapse", [
            over_training("policy/entropy", "Entropy", "nats per token"),
            over_training("policy/unique_fraction", "Different responses", "fraction of a rollout"),
            over_training("policy/distinct_2", "Distinct-2", "different bigrams / bigrams")]),
        "Reward per rollout": ("rollouts", [
            Panel(title="Separate evaluator", of=measures.reward_over_rollouts, lines=lines, x="sampled responses",
                  y=draw.EVALUATOR, levels=REWARDS)]),
    }  # fmt: skip
    return [draw.curves(pictures / f"results_{name}.png", alt, panels) for alt, (name, panels) in made.items()]
