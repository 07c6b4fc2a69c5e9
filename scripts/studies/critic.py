"""Where the critic starts: from the policy or the reward model, with or without warm-up, or on the policy's trunk."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import estimate
from apa_cli.runs.tables import spread
from apa_cli.tracking.style import BLUE, GREEN, GREY, ORANGE, new_figure, tidy
from studies import steer
from studies.beside import common_level, draw_lines, measure, paired, same, save, sentences, tail, typical
from studies.comparison import Measure, mean_height, reward_at_kl, reward_over_rollouts
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size

TITLE = "where a critic starts: policy, reward model, warm-up, shared trunk"
DURATION = "15 runs (3 of them shared with steer), about 15 minutes of one CPU core"
KL_LAMBDA = 0.3
WARMUP = 5
POLICY = "separate, from the policy"
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    POLICY: ("", {}),
    f"separate, from the policy, warm-up {WARMUP}": ("warm", {"value.warmup_iterations": WARMUP}),
    "separate, from the reward model": ("reward", {"value.path": "builtin:reviews/reward"}),
    f"separate, from the reward model, warm-up {WARMUP}": (
        "reward_warm",
        {"value.path": "builtin:reviews/reward", "value.warmup_iterations": WARMUP},
    ),
    "shared with the policy": ("shared", {"value.kind": "shared"}),
}
COLOURS = dict(zip(STARTS, (BLUE, "#56B4E9", ORANGE, "#E69F00", GREEN), strict=True))
EARLY = ((1, 5), (6, 10))  # iterations, over which explained variance is averaged; it is noisy from one to the next
LATE = 6


def setting(start: str) -> Setting:
    name, keys = STARTS[start]
    if start == POLICY:
        return steer.fixed(KL_LAMBDA)
    own = {"objective.kl_lambda": KL_LAMBDA, **keys}
    return Setting(name=f"apa_critic_{name}", recipe=steer.RECIPE, keys=own)


def settings(size: Size) -> list[Setting]:
    starts = list(STARTS)[:4:2] + list(STARTS)[4:] if size.quick else list(STARTS)
    return [setting(start) for start in starts]


def explained(run: Run, first: int, last: int) -> float | None:
    """Mean explained variance of the critic over these iterations."""
    rows = [row for row in run.rows if first <= (row["iteration"] or 0) <= last]
    values = [value for row in rows if (value := row.get("value/explained_variance")) is not None]
    return statistics.fmean(values) if values else None


def explained_last(run: Run) -> float | None:
    return explained(run, run.iterations - LATE + 1, run.iterations)


OVER_TRAINING = measure("evaluator, mean over training", lambda run: mean_height(reward_over_rollouts(run)))
LAST_THIRD = measure("evaluator, last third", lambda run: tail(run, "eval/evaluator"))


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    found = {start: mine for start in STARTS if (mine := runs[setting(start).name])}
    level = common_level(*found.values())
    judged = [OVER_TRAINING, LAST_THIRD]
    if level:
        judged.append(measure(f"evaluator at {level:g} nats", partial(reward_at_kl, level=level)))
    header = ["critic", *(f"explained variance, iterations {a} to {b}" for a, b in EARLY), f"last {LATE}",
              *(each.name for each in judged), "KL, last third", "CPU seconds per iteration"]  # fmt: skip
    rows = [_row(start, mine, judged) for start, mine in found.items()]
    return [
        *_best(found),
        "",
        f"![Explained variance and evaluator](images/{draw(found, pictures / 'methods_critic.png').name})",
        "",
        *table(header, rows),
        "",
        f"APA at λ {KL_LAMBDA:g}. Each run has the same number of rollouts, so that a warm-up of {WARMUP} iterations "
        f"leaves {WARMUP} fewer to the policy. ± is half the width of a 95 % interval over seeds.",
        "",
        DETAILS,
        *_beside_the_usual(found, judged),
    ]


def _row(start: str, runs: Sequence[Run], judged: Sequence[Measure]) -> list[str]:
    variance = [estimate(explained(run, *span) for run in runs) for span in EARLY]
    variance.append(estimate(explained_last(run) for run in runs))
    rewards = [estimate(each.of(run) for run in runs) for each in judged]
    kl = estimate(tail(run, "eval/kl") for run in runs)
    cpu = estimate(typical(run, "time/cpu") for run in runs)
    return [start, *(spread(value, 2) for value in (*variance, *rewards, kl, cpu))]


def _best(found: Mapping[str, Sequence[Run]]) -> list[str]:
    """The starts in the order of what they earned over training, and which of them the intervals tell apart."""
    means = {start: value.mean for start, runs in found.items() if (value := estimate(map(OVER_TRAINING.of, runs)))}
    if len(means) < 2:
        return ["Too few settings have runs to say which start is best."]
    order = sorted(means, key=lambda start: -means[start])
    best = order[0]
    rest = {start: paired((best, found[best]), (start, found[start]), OVER_TRAINING) for start in order[1:]}
    worse = [start for start, difference in rest.items() if same(difference) is False]
    near = [start for start in rest if start not in worse]
    words = [f"The evaluator's mean over training is highest with the critic *{best}* ({means[best]:.2f})."]
    if worse:
        words.append(f"Significantly lower: {'; '.join(f'*{s}* ({means[s]:.2f})' for s in worse)}.")
    if near:
        words.append(f"No significant difference: {'; '.join(f'*{s}* ({means[s]:.2f})' for s in near)}.")
    return [" ".join(words)]


def _beside_the_usual(found: Mapping[str, Sequence[Run]], judged: Sequence[Measure]) -> list[str]:
    usual = (POLICY, found.get(POLICY, []))
    return [
        line for each in judged for mine in found.items() if mine != usual for line in sentences(mine, usual, [each])
    ]


def draw(found: Mapping[str, Sequence[Run]], path: Path) -> Path:
    figure = new_figure(12.5, 4.6)
    left, right = figure.subplots(1, 2)
    for start, runs in found.items():
        size = float(runs[0].config.get("rollout.batch_size", 1))
        variances = [
            [(row["iteration"] * size, row["value/explained_variance"]) for row in run.rows
             if row["iteration"] and row.get("value/explained_variance") is not None]
            for run in runs
        ]  # fmt: skip
        draw_lines(left, variances, start, COLOURS[start], seeds=False)
        draw_lines(right, [reward_over_rollouts(run) for run in runs], start, COLOURS[start])
    left.axhline(0, color=GREY, linewidth=0.8)
    left.set_ylim(bottom=max(-1.0, left.get_ylim()[0]))
    tidy(left, "Explained variance of the critic, mean over seeds", legend=False)
    tidy(right, "Separate evaluator")
    for axes in (left, right):
        axes.set_xlabel("responses sampled")
    return save(figure, path)
