"""Beside TRL's GRPO: the built-in task's model, reward, prompts and sizes, judged by the same evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.tracking.style import BLUE, GREEN, ORANGE
from studies import compare, measures
from studies.compare import Row
from studies.draw import EVALUATOR, KL, Line, Panel, curves
from studies.group import GROUP
from studies.page import table
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
    rows, tuned, nearest = [], [], []
    for each, ((cell, near), free) in chosen.items():
        for rate, value in dict.fromkeys((cell, near)):
            first = (rate, value) == cell
            runs, note = grid(size).fresh(found, each, (rate, value)), "" if free else ", all collapsed"
            labels = [each.title, f"{rate:g}", f"{each.said(value)}{note if first else ', nearest in KL'}"]
            name = each.title if first else f"{each.title} ({each.said(value)}, learning rate {rate:g})"
            rows.append(Row(cells=labels, name=name, runs=runs, against="" if each.recipe is None else GRPO.title))
            drawn = [Line(label=each.title, colour=each.colour, runs=runs)] if runs else []
            tuned += drawn if first else []
            nearest += drawn if (rate, value) == near else []
    if not tuned:
        return ["Only the tuning runs are there: nothing to compare yet."]
    per_rollout = Panel(title="Per rollout", of=measures.reward_over_rollouts, lines=tuned, x="responses sampled",
                        y=EVALUATOR)  # fmt: skip
    per_second = Panel(title="Per second", of=measures.reward_over_seconds, lines=tuned, x="CPU seconds of training")
    at_kl = Panel(title="At equal KL: settings nearest to GRPO's", of=measures.reward_over_kl, lines=nearest, x=KL)
    columns = {each.name: compare.mean(each.of, each.digits) for each in (*RESPONSES, *SECONDS)}
    alt = "Evaluator against rollouts, seconds and KL"
    said = compare.report(
        rows,
        ["", "learning rate", "knob"],
        {**compare.LAST_THIRD, **columns, **compare.SECONDS, **compare.UNIQUE},
        asked,
        picture=curves(pictures / "methods_grpo.png", alt, [per_rollout, per_second, at_kl], same_y=True),
        note=CIRCUMSTANCES,
    )
    missing = "TRL's GRPO was not run: trl is not installed here. The figures are those of apa-cli alone."
    return [
        *([] if any(each.recipe is None for each in chosen) else [missing, ""]),
        *said,
        "",
        *table(*grid(size).table(found)),
    ]


def until(cost: Callable[[Run], list[tuple[float, float]]], name: str, digits: int) -> list[measures.Measure]:
    of = partial(measures.cost_until, cost=cost)
    return [measures.Measure(name=f"{name} until evaluator {level:g}", of=partial(of, level=level), digits=digits)
            for level in LEVELS]  # fmt: skip


RESPONSES = until(measures.reward_over_rollouts, "responses", 0)
SECONDS = until(measures.reward_over_seconds, "CPU seconds", 1)


def asked(ours: Sequence[Run], theirs: Sequence[Run]) -> list[measures.Measure]:
    """Per rollout, per second within what the fastest of these runs took, and at equal KL."""
    budget = min(measures.reward_over_seconds(run)[-1][0] for run in (*ours, *theirs))
    after = partial(measures.reward_after, seconds=budget)
    short = "evaluator per second (after as many CPU seconds as the fastest run took)"
    return [
        replace(measures.OVER_TRAINING, short="evaluator per rollout (mean over training)"),
        *RESPONSES,
        measures.Measure(name=f"evaluator after {budget:.0f} CPU seconds", of=after, short=short),
        *SECONDS,
        *measures.at_common_kl(ours, theirs),
        measures.LAST_THIRD,
        measures.CPU,
    ]


CIRCUMSTANCES = (
    "How it was compared. All train `builtin:reviews/policy` in full, in fp32 and with one thread, on the same prompts "
    "in the same order: 64 responses per iteration, 4 per prompt, at most 32 tokens, temperature 1, no top-k and no "
    "top-p; 2 passes in minibatches of 16; AdamW with β₂ 0.95, gradients clipped at 1, a constant learning rate. The "
    "reward is the same function of the sampled tokens, including the end of text, which TRL's own handling of a "
    "reward model would leave out. Everything else is TRL's default: loss type dapo, rewards scaled by the group's "
    "deviation, ε 0.2. One rule chose learning rate and KL knob from grids of the same size on seed 0, which is not "
    "counted afterwards: the highest evaluator reward at the end among settings that did not collapse. For the "
    "comparison at equal KL, our runs are repeated with the setting of the grid whose KL at the end was nearest to "
    "that of TRL's choice on seed 0. All policies are judged by apa-cli's evaluation on the same held-out prompts.\n\n"
    "Seconds are processor seconds of the process, without the start and evaluations, so that other work on the "
    "machine affects them little. Wall seconds per iteration (medians) are shown beside them. The model has half a "
    "million weights, so that much of an iteration is overhead: [performance.md](performance.md) has larger models."
)
