"""APA beside PPO and AWR, tuned alike, and what the runs say about the paper's four claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from studies import compare, draw, measures
from studies.compare import mean
from studies.draw import Panel
from studies.measures import Measure
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import HEADER, Contestant, Grid

title = "APA beside PPO and AWR, tuned alike: the paper's four claims (docs/results.md)"
duration = "42 runs, about 30 minutes on two CPU cores"
PAGE = "docs/results.md"
SEEDS, QUICK_SEEDS = 5, 2
KNOBS = {"apa": ("λ", "kl_lambda", (0.1, 0.3, 1.0)), "ppo": ("β", "kl_coef", (0.02, 0.05, 0.2)),
         "awr": ("λ", "kl_lambda", (0.5, 1.0, 2.0))}  # fmt: skip
RATES, REWARDS = (3e-5, 1e-4, 3e-4), (1.0, 1.5)
KL_LEVELS = (2.0, 5.0, 10.0)  # nats per response
NOTE = (
    f"Collapsed means an entropy below {measures.COLLAPSED_ENTROPY:g} of its initial value, or fewer than "
    f"{measures.COLLAPSED_UNIQUE:.0%} different responses. KL is the k1 estimate, in nats per response."
)
GRID = Grid(rates=RATES, contestants=[
    Contestant(title=objective.upper(), stem=objective, knob=knob, key=f"objective.{key}", values=values,
               recipe=f"reviews_{objective}", keys={"objective.kl_target": None})
    for objective, (knob, key, values) in KNOBS.items()
])  # fmt: skip
QUICK = Grid(contestants=[replace(c, values=c.values[:2]) for c in GRID.contestants], rates=RATES[1:2])


def grid(size: Size) -> Grid:
    return QUICK if size.quick else GRID


def settings(size: Size) -> list[Setting]:
    return grid(size).settings()


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    return grid(size).stages(size, read)


MEASURES = [
    *(Measure(name=f"(a) evaluator at {kl:g} nats", of=partial(measures.reward_at_kl, level=kl)) for kl in KL_LEVELS),
    Measure(name="(b) KL at the end", of=partial(measures.tail, name="kl/to_init", part=10)),
    Measure(name="(b) back-and-forth of KL", of=measures.back_and_forth, digits=3),
    Measure(name="(c) entropy at the end", of=lambda run: run.last("eval/entropy"), digits=3),
    Measure(name="(c) different responses at the end", of=lambda run: run.last("eval/unique_fraction"), digits=3),
    Measure(name="(c) distinct-2 at the end", of=lambda run: run.last("eval/distinct_2"), digits=3),
    Measure(name="(d) evaluator, mean over training", of=measures.over_training),
    *(Measure(name=f"(d) responses sampled until evaluator {level:g}", digits=0,
              of=partial(measures.cost_until, level=level)) for level in REWARDS),
]  # fmt: skip


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    rows = grid(size).rows(found)
    said = compare.report(
        [row for row, _ in rows],
        HEADER,
        {each.name: mean(each.of, each.digits) for each in MEASURES},
        lambda ours, theirs: MEASURES,
        picture=draw.curves(pictures / "results_paper.png", "The four claims over training", _panels(rows)),
        note=NOTE,
    )
    return [*said, "", *grid(size).table(found)]


def _panels(rows: Sequence[tuple[compare.Row, draw.Line]]) -> list[Panel]:
    common = {"lines": [line for _, line in rows]}
    over = partial(partial, measures.points, x="iteration")
    return [
        Panel(title="Evaluator against KL", of=measures.reward_over_kl, x=draw.KL, y=draw.EVALUATOR, **common),
        Panel(title="KL", of=over(y="kl/to_init"), y="nats per response", **common),
        Panel(title="Entropy", of=over(y="policy/entropy"), y="nats per token", **common),
        Panel(title="Evaluator per rollout", of=measures.reward_over_rollouts, x="sampled responses", levels=REWARDS,
              **common),
    ]  # fmt: skip
