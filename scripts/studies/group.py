"""Without a critic: each objective with four responses a prompt, beside itself with a critic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies import compare, measures
from studies.compare import Row
from studies.draw import COLOURS, EVALUATOR, KL, Line, Panel, curves
from studies.runs import Found, Setting, Size

TITLE = "APA, AWR and PPO without a critic, beside themselves with one"
DURATION = "21 runs, about 20 minutes of one CPU core"
EVALUATIONS = 12
GROUP: dict[str, Any] = {"advantage.name": "group", "value.kind": "none", "rollout.responses_per_prompt": 4}
LOW = 2.0  # nats: a level that every run passes early
CRITIC, OTHERS, SCALED = "critic", "group of 4", "group of 4, scaled"
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    CRITIC: ("_critic", {}),
    OTHERS: ("_group4", GROUP),
    SCALED: ("_group4_scaled", {**GROUP, "advantage.group_scale": True}),
}


@dataclass(frozen=True, kw_only=True)
class Objective:
    title: str
    recipe: str
    keys: dict[str, Any]
    knob: str
    baselines: tuple[str, ...]  # the critic first

    def setting(self, baseline: str) -> Setting:
        keys = {**self.keys, **BASELINES[baseline][1]}
        name = f"{self.recipe.removeprefix('reviews_')}{BASELINES[baseline][0]}"
        return Setting(name=name, recipe=self.recipe, keys=keys, evaluations=EVALUATIONS)


STEERED = Objective(
    title="APA",
    recipe="reviews_apa",
    keys={"objective.kl_target": 5.0},
    knob="λ from 0.3, steered to 5 nats",
    baselines=(CRITIC, OTHERS, SCALED),
)
OBJECTIVES = (
    STEERED,
    Objective(title="AWR", recipe="reviews_awr", keys={}, knob="λ 2", baselines=(CRITIC, OTHERS)),
    Objective(title="PPO", recipe="reviews_ppo", keys={}, knob="β 0.05", baselines=(CRITIC, OTHERS)),
)


def settings(size: Size) -> list[Setting]:
    objectives = OBJECTIVES[:1] if size.quick else OBJECTIVES
    return [objective.setting(baseline) for objective in objectives for baseline in objective.baselines]


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    rows, panels = [], []
    for each in OBJECTIVES:
        label = f"{each.title}, {each.knob}"
        found = {baseline: mine for baseline in each.baselines if (mine := runs[each.setting(baseline).name])}
        for baseline, mine in found.items():
            against = "" if baseline == CRITIC else f"{each.title} with {CRITIC}"
            rows.append(Row(cells=[label, baseline], name=f"{each.title} with {baseline}", runs=mine, against=against))
        drawn = [Line(label=b, colour=c, runs=found[b]) for b, c in zip(BASELINES, COLOURS, strict=False) if b in found]
        panels.append(Panel(title=label, of=measures.reward_over_kl, lines=drawn, x=KL, y=EVALUATOR))
    return compare.report(
        rows,
        ["objective", "baseline"],
        {**compare.LAST_THIRD, **compare.UNIQUE, **compare.SECONDS},
        lambda ours, theirs: [*measures.at_common_kl(ours, theirs, low=LOW), measures.LAST_THIRD, measures.CPU],
        picture=curves(pictures / "methods_group.png", "Evaluator against KL", panels, same_y=True),
        note=f"Levels of KL: {LOW:g} nats, and the highest multiple of half a nat that all runs of both settings "
        "reach. Last third: means over the evaluations in the last third of training. Seconds are medians over "
        "iterations, without evaluations; the machine also did other work, which affects wall seconds. "
        "[performance.md](performance.md) has the measured speed and memory of larger models.",
    )
