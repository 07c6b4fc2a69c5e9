"""Beside TRL's GRPO: the built-in task's model, reward, prompts and sizes, judged by the same evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.tracking.style import BLUE, GREEN, ORANGE
from studies import compare, measures, trl_grpo
from studies.draw import EVALUATOR, KL, Panel, curves
from studies.group import GROUP
from studies.page import table
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import HEADER, TUNING_SEED, Contestant, Grid

TITLE = "APA and PPO without a critic beside TRL's GRPO: reward per rollout and per second"
DURATION = "27 runs, 9 of them TRL's, about 40 minutes of one CPU core; needs trl, here or by --trl-python"
APA = Contestant(title="APA", stem="apa_group4", knob="λ", key="objective.kl_lambda", values=(0.1, 0.3, 1.0),
                 recipe="reviews_apa", colour=BLUE, keys=GROUP)  # fmt: skip
PPO = Contestant(title="PPO", stem="ppo_group4", knob="β", key="objective.kl_coef", values=(0.02, 0.05, 0.2),
                 recipe="reviews_ppo", colour=GREEN, keys=GROUP)  # fmt: skip
GRPO = Contestant(title=trl_grpo.TITLE, stem="grpo_group4", knob="β", key="objective.kl_coef", values=(0.0, 0.04, 0.2),
                  recipe="reviews_apa", objective="grpo", trl=True, keys=GROUP, colour=ORANGE)  # fmt: skip
GRID = Grid(contestants=(APA, PPO, GRPO), rates=(1e-4, 3e-4))
QUICK = Grid(contestants=[replace(c, values=c.values[:1]) for c in GRID.contestants], rates=GRID.rates[1:])
LEVELS = (1.0, 1.5)  # evaluator rewards up to which rollouts and seconds are counted


def grid(size: Size) -> Grid:
    return QUICK if size.quick else GRID


def settings(size: Size) -> list[Setting]:
    return grid(size).settings()


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    """Tune with one seed; run the chosen with the others."""
    yield settings(size), [TUNING_SEED]
    yield [each.setting(cell) for each, (cell, _) in grid(size).chosen(read()).items()], size.seeds


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    tuned = grid(size).tuned_rows(found, GRPO.title)
    lines = [line for _, line in tuned]
    panels = [
        Panel(title="Per rollout", of=measures.reward_over_rollouts, lines=lines, x="responses sampled", y=EVALUATOR),
        Panel(title="Per second", of=measures.reward_over_seconds, lines=lines, x="CPU seconds of training"),
        Panel(title="Against KL", of=measures.reward_over_kl, lines=lines, x=KL),
    ]
    columns = {each.name: compare.mean(each.of, each.digits) for each in (*RESPONSES, *SECONDS)}
    said = compare.report(
        [row for row, _ in tuned],
        HEADER,
        {**compare.LAST_THIRD, **columns, **compare.SECONDS, **compare.UNIQUE},
        asked,
        picture=curves(
            pictures / "methods_grpo.png", "Evaluator against rollouts, seconds and KL", panels, same_y=True
        ),
        note=CIRCUMSTANCES,
    )
    return [
        *([] if any(row.name == GRPO.title for row, _ in tuned) else [trl_grpo.MISSING, ""]),
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
    "counted afterwards: the highest evaluator reward at the end among settings that did not collapse. "
    "All policies are judged by apa-cli's evaluation on the same held-out prompts.\n\n"
    "Seconds are processor seconds of the process, without the start and evaluations, so that other work on the "
    "machine affects them little. Wall seconds per iteration (medians) are shown beside them. The model has half a "
    "million weights, so that much of an iteration is overhead: [performance.md](performance.md) has larger models."
)
