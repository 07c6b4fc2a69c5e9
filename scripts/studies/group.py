"""Without a critic: each objective with four responses a prompt, beside itself with a critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apa_cli.config.compose import compose_train
from apa_cli.models.device import select_runtime
from apa_cli.rewards.preview import planned_readings
from apa_cli.runs.folders import Run
from apa_cli.runs.settings import estimate
from apa_cli.runs.tables import spread
from apa_cli.tracking.pages import format_number
from apa_cli.tracking.style import BLUE, GREEN, ORANGE, new_figure, tidy
from apa_cli.training.memory_plan import gib, make_plan, with_estimates
from studies.beside import (
    at_kl,
    common_level,
    draw_reward_over_kl,
    measure,
    paired,
    same,
    save,
    sentences,
    tail,
    typical,
)
from studies.comparison import Difference
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size

TITLE = "APA, AWR and PPO without a critic, beside themselves with one"
DURATION = "21 runs, about 20 minutes of one CPU core"
EVALUATIONS = 12
GROUP: dict[str, Any] = {"advantage.name": "group", "value.kind": "none", "rollout.responses_per_prompt": 4}
LOW = 2.0  # nats: a level that every run passes early


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


CRITIC, OTHERS, SCALED = "critic", "group of 4", "group of 4, scaled"
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    CRITIC: ("_critic", {}),
    OTHERS: ("_group4", GROUP),
    SCALED: ("_group4_scaled", {**GROUP, "advantage.group_scale": True}),
}
COLOURS = {CRITIC: BLUE, OTHERS: ORANGE, SCALED: GREEN}
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
    rows, said, verdicts = [], [], []
    for objective in OBJECTIVES:
        critic = runs[objective.setting(CRITIC).name]
        for baseline in objective.baselines:
            mine = runs[objective.setting(baseline).name]
            if not mine:
                continue
            rows.append(_row(objective, baseline, mine))
            if baseline == CRITIC or not critic:
                continue
            at_levels = _at_equal_kl(objective, baseline, mine, critic)
            names = [f"{objective.title}, {found.measure.name}, {baseline}" for found in at_levels]
            verdicts += zip(names, map(same, at_levels), strict=True)
            said += [f"- {found.sentence()}" for found in at_levels if found.value and found.value.half is not None]
            said += _at_the_end_and_cost(objective, baseline, mine, critic)
    header = ["objective", "baseline", "evaluator, last third", "KL, last third", "reward, last third",
              "different responses", "CPU seconds per iteration", "wall seconds", "models", "peak"]  # fmt: skip
    return [
        _summary(verdicts),
        "",
        f"![Evaluator against KL](images/{draw(runs, pictures / 'methods_group.png').name})",
        "",
        *table(header, rows),
        "",
        f"Levels of KL: {LOW:g} nats, and the highest multiple of half a nat that all runs of both settings reach. "
        "Last third: means over the evaluations in the last third of training. ± is half the width of a 95 % interval "
        "over seeds. Seconds are medians over iterations, without evaluations; the machine also did other work, which "
        "affects wall seconds. Memory is planned, not measured (`apa-train plan_only=true`): *models* are weights, "
        "gradients and optimizer states, and *peak* adds what sampling or the update needs. "
        "[performance.md](performance.md) has the measured speed and memory of larger models.",
        "",
        DETAILS,
        *said,
    ]


def _row(objective: Objective, baseline: str, runs: Sequence[Run]) -> list[str]:
    figures = [spread(estimate(tail(run, f"eval/{name}") for run in runs), 2) for name in ("evaluator", "kl", "reward")]
    unique = estimate(run.last("eval/unique_fraction") for run in runs)
    seconds = [spread(estimate(typical(run, f"time/{name}") for run in runs), 2) for name in ("cpu", "iteration")]
    label = f"{objective.title}, {objective.knob}"
    diversity = format_number(unique.lowest if unique else None, 2)
    return [label, baseline, *figures, diversity, *seconds, *planned(objective.setting(baseline))]


def planned(setting: Setting) -> list[str]:
    config = compose_train([f"config={setting.recipe}", *(f"{key}={value}" for key, value in setting.keys.items())])
    runtime = select_runtime("cpu", config.precision)
    plan = with_estimates(make_plan(config, runtime), config, runtime, planned_readings(config, runtime)[0])
    return [gib(plan.certain_bytes), gib(plan.expected_bytes)]


def _at_equal_kl(objective: Objective, baseline: str, mine: Sequence[Run], critic: Sequence[Run]) -> list[Difference]:
    """At the two levels of KL; [] where the two have none in common."""
    top = common_level(mine, critic)
    levels = sorted({min(LOW, top), top}) if top else []
    return [paired(*_named(objective, baseline, mine, critic), at_kl(level)) for level in levels]


def _at_the_end_and_cost(objective: Objective, baseline: str, mine: Sequence[Run], critic: Sequence[Run]) -> list[str]:
    last = measure("evaluator, last third", lambda run: tail(run, "eval/evaluator"))
    words = sentences(*_named(objective, baseline, mine, critic), [last])
    seconds, before = (estimate(typical(run, "time/cpu") for run in runs) for runs in (mine, critic))
    if seconds and before:
        share = f"{seconds.mean / before.mean:.0%}"
        words.append(
            f"- {objective.title}, {baseline}: an iteration takes {share} of the CPU seconds that it takes with a "
            "critic."
        )
    return words


def _named(
    objective: Objective, baseline: str, mine: Sequence[Run], critic: Sequence[Run]
) -> tuple[tuple[str, Sequence[Run]], tuple[str, Sequence[Run]]]:
    return (f"{objective.title} with {baseline}", mine), (f"{objective.title} with {CRITIC}", critic)


def _summary(verdicts: Sequence[tuple[str, bool | None]]) -> str:
    known = [(name, verdict) for name, verdict in verdicts if verdict is not None]
    if not known:
        return "Too few seeds to say whether the evaluator's reward differs at equal KL."
    other = [name for name, verdict in known if not verdict]
    words = (
        "At equal KL, the evaluator's reward with and without a critic does not differ significantly in "
        f"{len(known) - len(other)} of {len(known)} comparisons"
    )
    return f"{words}; it does in: {'; '.join(other)}." if other else f"{words}."


def draw(runs: Found, path: Path) -> Path:
    figure = new_figure(13, 4.4)
    for axes, objective in zip(figure.subplots(1, len(OBJECTIVES), sharey=True), OBJECTIVES, strict=True):
        for baseline in objective.baselines:
            found = runs[objective.setting(baseline).name]
            if found:
                draw_reward_over_kl(axes, found, baseline, COLOURS[baseline])
        tidy(axes, f"{objective.title}, {objective.knob}")
        axes.set_xlabel("KL from the initial policy, nats per response")
    figure.axes[0].set_ylabel("separate evaluator")
    return save(figure, path)
