"""What the runs beside TRL's GRPO say: sentences, a picture and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import estimate
from apa_cli.runs.tables import spread
from apa_cli.tracking.pages import format_number
from apa_cli.tracking.style import new_figure, tidy
from studies.beside import (
    at_kl,
    common_level,
    draw_lines,
    draw_reward_over_kl,
    measure,
    paired,
    same,
    save,
    sentences,
    tail,
    typical,
)
from studies.comparison import Measure, Points, at_level, mean_height, reward_over_rollouts, rollouts_until
from studies.contestants import APA, CONTESTANTS, GRPO, PPO, RATES, TUNING_SEED, Chosen, Contestant, choices
from studies.page import DETAILS, table
from studies.runs import Found, Size

QUESTIONS = {
    "evaluator per rollout": "Per rollout (mean over training)",
    "evaluator after": "per second (after as many CPU seconds as the fastest run took)",
    "evaluator at ": "at equal KL",
}
LEVELS = (1.0, 1.5)  # evaluator rewards up to which rollouts and seconds are counted


def reward_over_seconds(run: Run) -> Points:
    """(CPU seconds of training so far, evaluator) of the run's evaluations; the evaluations' own time is left out."""
    points, spent = [], 0.0
    for row in run.rows:
        spent += row.get("time/cpu") or 0.0
        reward = row.get("eval/evaluator")
        if reward is not None:
            points.append((spent, reward))
    return points


def seconds_until(run: Run, level: float) -> float | None:
    return at_level([(reward, seconds) for seconds, reward in reward_over_seconds(run)], level)


def reward_after(run: Run, seconds: float) -> float | None:
    return at_level(reward_over_seconds(run), seconds)


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    chosen = choices(found, size)
    fresh = _fresh(found, {title: each.cell for title, each in chosen.items()})
    if not fresh:
        return ["Only the tuning runs are there: nothing to compare yet."]
    near = _fresh(found, {title: each.nearest for title, each in chosen.items()})
    short = ["TRL's GRPO was not run: trl is not installed here. The figures are those of apa-cli alone.", ""]
    if GRPO in fresh:
        short = _in_short(fresh, near)
    said: list[str] = []
    for ours in (APA, PPO):
        if ours in fresh and GRPO in fresh:
            said += sentences((ours.title, fresh[ours]), (GRPO.title, fresh[GRPO]), measures(fresh[ours], fresh[GRPO]))
        if ours in near and GRPO in near:
            said += sentences((_named(ours, chosen), near[ours]), (GRPO.title, near[GRPO]), _at_equal_kl(near, ours))
    picture = draw(fresh, near, pictures / "methods_grpo.png")
    return [
        *short,
        f"![Evaluator against rollouts, seconds and KL](images/{picture.name})",
        "",
        *table(*_table(found, chosen)),
        "",
        *CIRCUMSTANCES,
        "",
        DETAILS,
        *said,
        "",
        *table(*_tuning(found, size)),
    ]


def _fresh(found: Found, cells: Mapping[str, tuple[float, float]]) -> dict[Contestant, list[Run]]:
    """Runs of each contestant's cell, the tuning seed's left out."""
    return {
        contestant: mine
        for contestant in CONTESTANTS
        if contestant.title in cells
        and (mine := [run for run in found[contestant.name(*cells[contestant.title])] if run.seed != TUNING_SEED])
    }


def _named(contestant: Contestant, chosen: Mapping[str, Chosen]) -> str:
    rate, value = chosen[contestant.title].nearest
    return f"{contestant.title} ({contestant.knob} {value:g}, learning rate {rate:g})"


def _in_short(fresh: Mapping[Contestant, Sequence[Run]], near: Mapping[Contestant, Sequence[Run]]) -> list[str]:
    """Higher, lower, or not significantly different: what is asked of each of ours beside TRL's."""
    asked: dict[str, list[str]] = {}
    for ours in (APA, PPO):
        pairs = [(fresh, each) for each in measures(fresh[ours], fresh[GRPO])] if ours in fresh else []
        pairs += [(near, each) for each in _at_equal_kl(near, ours)] if ours in near and GRPO in near else []
        for runs, what in pairs:
            question = next((words for start, words in QUESTIONS.items() if what.short.startswith(start)), None)
            difference = paired((ours.title, runs[ours]), (GRPO.title, runs[GRPO]), what)
            if question is None or difference.value is None or (equal := same(difference)) is None:
                continue
            way = "not significantly different" if equal else "higher" if difference.value.mean > 0 else "lower"
            asked.setdefault(question, []).append(f"{ours.title} is {way}")
    words = [f"{question}: {', '.join(answers)}" for question, answers in asked.items()]
    return [f"The evaluator's reward compared with TRL's GRPO. {'; '.join(words)}.", ""] if words else []


def measures(ours: Sequence[Run], theirs: Sequence[Run]) -> list[Measure]:
    """Per rollout, and per second within what the quicker of all runs took in all."""
    budget = min((reward_over_seconds(run)[-1][0] for run in (*ours, *theirs)), default=0.0)
    return [
        measure("evaluator per rollout, mean over training", lambda run: mean_height(reward_over_rollouts(run))),
        *(measure(f"responses sampled until evaluator {level:g}", partial(rollouts_until, level=level), digits=0)
          for level in LEVELS),
        measure(f"evaluator after {budget:.0f} CPU seconds", partial(reward_after, seconds=budget)),
        *(measure(f"CPU seconds until evaluator {level:g}", partial(seconds_until, level=level), digits=1)
          for level in LEVELS),
        measure("evaluator, last third", lambda run: tail(run, "eval/evaluator")),
        measure("CPU seconds per iteration", lambda run: typical(run, "time/cpu")),
    ]  # fmt: skip


def _at_equal_kl(near: Mapping[Contestant, Sequence[Run]], ours: Contestant) -> list[Measure]:
    level = common_level(near[ours], near[GRPO])
    return [at_kl(level)] if level else []


def _table(found: Found, chosen: Mapping[str, Chosen]) -> tuple[list[str], list[list[str]]]:
    header = ["", "learning rate", "knob", "evaluator, last third", "KL, last third", "reward, last third",
              *(f"responses until {level:g}" for level in LEVELS),
              *(f"CPU seconds until {level:g}" for level in LEVELS),
              "CPU seconds per iteration", "wall seconds", "different responses"]  # fmt: skip
    rows = []
    settings = [(each, cell) for each in CONTESTANTS if each.title in chosen for cell in chosen[each.title].cells]
    for contestant, cell in settings:
        rate, value = cell
        runs = _fresh(found, {contestant.title: cell}).get(contestant, [])
        if not runs:
            continue
        mine = chosen[contestant.title]
        collapsed = ", nearest in KL" if cell != mine.cell else "" if mine.choice.collapse_free else ", all collapsed"
        last = [measure("", partial(tail, name=f"eval/{name}")) for name in ("evaluator", "kl", "reward")]
        until = [measure("", partial(rollouts_until, level=level), digits=0) for level in LEVELS]
        seconds = [measure("", partial(seconds_until, level=level), digits=1) for level in LEVELS]
        cost = [measure("", partial(typical, name=f"time/{name}")) for name in ("cpu", "iteration")]
        unique = estimate(run.last("eval/unique_fraction") for run in runs)
        figures = [_spread(each, runs) for each in (*last, *until, *seconds, *cost)]
        rows.append([contestant.title, f"{rate:g}", f"{contestant.knob} {value:g}{collapsed}", *figures,
                     format_number(unique.lowest if unique else None, 2)])  # fmt: skip
    return header, rows


def _spread(what: Measure, runs: Sequence[Run]) -> str:
    """Over seeds, and how many of them get there where not all do."""
    value = estimate(map(what.of, runs))
    reached = "" if value is None or value.count == len(runs) else f" ({value.count} of {len(runs)})"
    return spread(value, what.digits) + reached


def _tuning(found: Found, size: Size) -> tuple[list[str], list[list[str]]]:
    header = ["tuning, seed 0: evaluator (KL) at the end", *(f"learning rate {rate:g}" for rate in RATES)]
    rows = []
    for contestant in CONTESTANTS:
        for value in contestant.values:
            cells = []
            for rate in RATES:
                mine = [run for run in found[contestant.name(rate, value)] if run.seed == TUNING_SEED]
                numbers = [format_number(run.last(f"eval/{name}"), 2) for run in mine for name in ("evaluator", "kl")]
                cells.append("{} ({})".format(*numbers) if numbers else "–")
            rows.append([f"{contestant.title}, {contestant.knob} {value:g}", *cells])
    return header, rows


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


def draw(fresh: Mapping[Contestant, Sequence[Run]], near: Mapping[Contestant, Sequence[Run]], path: Path) -> Path:
    figure = new_figure(13.5, 4.4)
    rollouts, seconds, kl = figure.subplots(1, 3, sharey=True)
    for contestant, runs in fresh.items():
        draw_lines(rollouts, [reward_over_rollouts(run) for run in runs], contestant.title, contestant.colour)
        draw_lines(seconds, [reward_over_seconds(run) for run in runs], contestant.title, contestant.colour)
    for contestant, runs in near.items():
        draw_reward_over_kl(kl, runs, contestant.title, contestant.colour)
    for axes, title, unit in (
        (rollouts, "Per rollout", "responses sampled"),
        (seconds, "Per second", "CPU seconds of training"),
        (kl, "At equal KL: settings nearest to GRPO's", "nats per response"),
    ):
        tidy(axes, title)
        axes.set_xlabel(unit)
    rollouts.set_ylabel("separate evaluator")
    return save(figure, path)
