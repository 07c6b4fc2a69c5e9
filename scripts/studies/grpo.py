"""Beside TRL's GRPO: the built-in task's model, reward, prompts and sizes, judged by the same evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.tracking.style import BLUE, GREEN, ORANGE
from studies import measures
from studies.draw import EVALUATOR, KL, Line, Panel, curves
from studies.group import GROUP
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import TUNING_SEED, Cell, Contestant, Grid

TITLE = "APA and PPO without a critic beside TRL's GRPO: reward per rollout and per second"
DURATION = "27 to 33 runs, 9 of them TRL's, about 40 minutes of one CPU core; needs trl, here or by --trl-python"
APA = Contestant(title="APA", stem="apa_group4", knob="λ", key="objective.kl_lambda", values=(0.1, 0.3, 1.0),
                 recipe="reviews_apa", colour=BLUE, keys=GROUP)  # fmt: skip
PPO = Contestant(title="PPO", stem="ppo_group4", knob="β", key="objective.kl_coef", values=(0.02, 0.05, 0.2),
                 recipe="reviews_ppo", colour=GREEN, keys=GROUP)  # fmt: skip
GRPO = Contestant(title="TRL's GRPO", stem="grpo_group4", knob="β", key="objective.kl_coef", values=(0.0, 0.04, 0.2),
                  recipe=None, colour=ORANGE)  # fmt: skip
GRID = Grid(contestants=(APA, PPO, GRPO), rates=(1e-4, 3e-4))
QUICK = Grid(contestants=[replace(c, values=c.values[:1]) for c in GRID.contestants], rates=GRID.rates[1:])
LEVELS = (1.0, 1.5)  # evaluator rewards up to which rollouts and seconds are counted
QUESTIONS = {
    "evaluator per rollout": "Per rollout (mean over training)",
    "evaluator after": "per second (after as many CPU seconds as the fastest run took)",
    "evaluator at ": "at equal KL",
}


def grid(size: Size) -> Grid:
    return QUICK if size.quick else GRID


def settings(size: Size) -> list[Setting]:
    return grid(size).settings()


def planned(size: Size) -> int:
    return len(settings(size)) + len(GRID.contestants) * len(size.seeds)


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    """Tune with one seed; run the chosen with the others, and those of ours that end nearest to TRL's KL."""
    yield settings(size), [TUNING_SEED]
    chosen = choices(read(), size)
    yield [each.setting(cell) for each, (cells, _) in chosen.items() for cell in dict.fromkeys(cells)], size.seeds


def choices(found: Found, size: Size) -> dict[Contestant, tuple[tuple[Cell, Cell], bool]]:
    """Of each contestant the tuned cell, and the one that ends nearest to the KL of TRL's choice; whether the tuned
    one did not collapse."""
    chosen = grid(size).chosen(found)
    theirs = next((each for each in chosen if each.recipe is None), None)

    def end(contestant: Contestant, cell: Cell) -> float:
        kl = grid(size).tuned(found, contestant)[cell][0].last("eval/kl")
        return math.inf if kl is None else kl

    def nearest(contestant: Contestant, cell: Cell) -> Cell:
        if theirs is None or contestant is theirs:
            return cell
        tuned = grid(size).tuned(found, contestant)
        sound = [c for c, runs in tuned.items() if not any(map(measures.collapsed, runs))]
        return min(sound or [cell], key=lambda c: abs(end(contestant, c) - end(theirs, chosen[theirs][0])))

    return {each: ((cell, nearest(each, cell)), free) for each, (cell, free) in chosen.items()}


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    chosen = choices(found, size)
    fresh, near = (
        {each: runs for each, (cells, _) in chosen.items() if (runs := grid(size).fresh(found, each, cells[which]))}
        for which in (0, 1)
    )
    if not fresh:
        return ["Only the tuning runs are there: nothing to compare yet."]
    theirs = next((each for each in fresh if each.recipe is None), None)
    said = []
    if theirs is None:
        short = "TRL's GRPO was not run: trl is not installed here. The figures are those of apa-cli alone."
    else:
        pairs = {}  # ours: what is compared at the tuned setting, and at equal KL with the name of the setting
        for ours in (each for each in fresh if each is not theirs):
            level = measures.common_level(near[ours], near[theirs]) if ours in near and theirs in near else None
            rate, value = chosen[ours][0][1]
            named = f"{ours.title} ({ours.said(value)}, learning rate {rate:g})"
            pairs[ours] = [((ours.title, fresh[ours]), fresh[theirs], asked(fresh[ours], fresh[theirs]))]
            pairs[ours] += [((named, near[ours]), near[theirs], [measures.at_kl(level)])] if level else []
        short = _in_short(pairs)
        for mine, other, what in (part for parts in pairs.values() for part in parts):
            said += measures.sentences(mine, (theirs.title, other), what)
    return [
        short,
        "",
        _picture(fresh, near, pictures),
        "",
        *table(*_table(found, size, chosen)),
        "",
        *CIRCUMSTANCES,
        "",
        DETAILS,
        *said,
        "",
        *table(*grid(size).table(found)),
    ]


def _in_short(
    pairs: Mapping[Contestant, Sequence[tuple[tuple[str, list[Run]], list[Run], list[measures.Measure]]]],
) -> str:
    """Higher, lower, or not significantly different: what is asked of each of ours beside TRL's."""
    answers: dict[str, list[str]] = {}
    for ours, parts in pairs.items():
        for (_, mine), other, what in parts:
            for difference in (measures.compare((ours.title, mine), (GRPO.title, other), each) for each in what):
                question = next(
                    (q for start, q in QUESTIONS.items() if difference.measure.name.startswith(start)), None
                )
                if question is not None and difference.judged:
                    way = {0: "not significantly different", 1: "higher", -1: "lower"}[difference.sign]
                    answers.setdefault(question, []).append(f"{ours.title} is {way}")
    words = "; ".join(f"{question}: {', '.join(each)}" for question, each in answers.items())
    return (
        f"The evaluator's reward compared with TRL's GRPO. {words}." if words else "Too few seeds to tell a difference."
    )


def until(cost: Callable[[Run], list[tuple[float, float]]], name: str, digits: int) -> list[measures.Measure]:
    of = partial(measures.cost_until, cost=cost)
    return [measures.Measure(name=f"{name} until {level:g}", of=partial(of, level=level), digits=digits)
            for level in LEVELS]  # fmt: skip


RESPONSES = until(measures.reward_over_rollouts, "responses", 0)
SECONDS = until(measures.reward_over_seconds, "CPU seconds", 1)
CPU = measures.Measure(name="CPU seconds per iteration", of=partial(measures.typical, name="time/cpu"))


def asked(ours: Sequence[Run], theirs: Sequence[Run]) -> list[measures.Measure]:
    """Per rollout, and per second within what the quicker of all runs took in all."""
    budget = min((measures.reward_over_seconds(run)[-1][0] for run in (*ours, *theirs)), default=0.0)
    after = partial(measures.reward_after, seconds=budget)
    return [
        measures.Measure(name="evaluator per rollout, mean over training", of=measures.over_training),
        *(replace(each, name=each.name.replace("until", "sampled until evaluator")) for each in RESPONSES),
        measures.Measure(name=f"evaluator after {budget:.0f} CPU seconds", of=after),
        *(replace(each, name=each.name.replace("until", "until evaluator")) for each in SECONDS),
        measures.LAST_THIRD,
        CPU,
    ]


def _table(
    found: Found, size: Size, chosen: Mapping[Contestant, tuple[tuple[Cell, Cell], bool]]
) -> tuple[list[str], list[list[str]]]:
    last = (("evaluator", "evaluator"), ("KL", "kl"), ("reward", "reward"))
    columns = [
        measures.Measure(name=f"{title}, last third", of=partial(measures.tail, name=f"eval/{name}"))
        for title, name in last
    ]
    columns += [
        *RESPONSES,
        *SECONDS,
        CPU,
        measures.Measure(name="wall seconds", of=partial(measures.typical, name="time/iteration")),
    ]
    rows = []
    for contestant, (cells, free) in chosen.items():
        for rate, value in dict.fromkeys(cells):
            runs = grid(size).fresh(found, contestant, (rate, value))
            note = ", nearest in KL" if (rate, value) != cells[0] else "" if free else ", all collapsed"
            if runs:
                figures = [measures.shown(runs, each.of, each.digits) for each in columns]
                row = [
                    contestant.title,
                    f"{rate:g}",
                    f"{contestant.said(value)}{note}",
                    *figures,
                    measures.least_unique(runs),
                ]
                rows.append(row)
    return ["", "learning rate", "knob", *(each.name for each in columns), "different responses"], rows


CIRCUMSTANCES = [
    "How it was compared. All train `builtin:reviews/policy` in full, in fp32 and with one thread, on the same prompts "
    "in the same order: 64 responses per iteration, 4 per prompt, at most 32 tokens, temperature 1, no top-k and no "
    "top-p; 2 passes in minibatches of 16; AdamW with β₂ 0.95, gradients clipped at 1, a constant learning rate. The "
    "reward is the same function of the sampled tokens, including the end of text, which TRL's own handling of a "
    "reward model would leave out. Everything else is TRL's default: loss type dapo, rewards scaled by the group's "
    "deviation, ε 0.2. One rule chose learning rate and KL knob from grids of the same size on seed 0, which is not "
    "counted afterwards: the highest evaluator reward at the end among settings that did not collapse. For the "
    "comparison at equal KL, our runs are repeated with the setting of the grid whose KL at the end was nearest to "
    "that of TRL's choice on seed 0. All policies are judged by apa-cli's evaluation on the same held-out prompts.",
    "",
    "Seconds are processor seconds of the process, without the start and evaluations, so that other work on the "
    "machine affects them little. Wall seconds per iteration (medians) are shown beside them. The model has half a "
    "million weights, so that much of an iteration is overhead: [performance.md](performance.md) has larger models. ± "
    "is half the width of a 95 % interval over seeds.",
]


def _picture(
    fresh: Mapping[Contestant, Sequence[Run]], near: Mapping[Contestant, Sequence[Run]], pictures: Path
) -> str:
    tuned, nearest = (
        [Line(label=c.title, colour=c.colour, runs=runs) for c, runs in each.items()] for each in (fresh, near)
    )
    panels = [
        Panel(title="Per rollout", of=measures.reward_over_rollouts, lines=tuned, x="responses sampled", y=EVALUATOR),
        Panel(title="Per second", of=measures.reward_over_seconds, lines=tuned, x="CPU seconds of training"),
        Panel(title="At equal KL: settings nearest to GRPO's", of=measures.reward_over_kl, lines=nearest, x=KL),
    ]
    return curves(pictures / "methods_grpo.png", "Evaluator against rollouts, seconds and KL", panels, same_y=True)
