"""Where the critic starts: from the policy or the reward model, with or without warm-up, or on the policy's trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import estimate
from studies import measures, steer
from studies.draw import COLOURS, EVALUATOR, Line, Panel, curves
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size

TITLE = "where a critic starts: policy, reward model, warm-up, shared trunk"
DURATION = "15 runs (3 of them shared with steer), about 15 minutes of one CPU core"
KL_LAMBDA = 0.3
WARMUP = 5
POLICY = "separate, from the policy"
REWARD = {"value.path": "builtin:reviews/reward"}
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    POLICY: ("", {}),
    f"separate, from the policy, warm-up {WARMUP}": ("warm", {"value.warmup_iterations": WARMUP}),
    "separate, from the reward model": ("reward", REWARD),
    f"separate, from the reward model, warm-up {WARMUP}": (
        "reward_warm",
        {**REWARD, "value.warmup_iterations": WARMUP},
    ),
    "shared with the policy": ("shared", {"value.kind": "shared"}),
}
EARLY = ((1, 5), (6, 10))  # iterations, over which explained variance is averaged; it is noisy from one to the next
LATE = 6


def setting(start: str) -> Setting:
    name, keys = STARTS[start]
    if start == POLICY:
        return steer.fixed(KL_LAMBDA)
    return Setting(name=f"apa_critic_{name}", recipe=steer.RECIPE, keys={"objective.kl_lambda": KL_LAMBDA, **keys})


def settings(size: Size) -> list[Setting]:
    starts = list(STARTS)
    return list(map(setting, [*starts[:4:2], starts[4]] if size.quick else starts))


def explained_last(run: Run) -> float | None:
    return measures.between(run, "value/explained_variance", run.iterations - LATE + 1, run.iterations)


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    found = {start: mine for start in STARTS if (mine := runs[setting(start).name])}
    level = measures.common_level(*found.values())
    judged = [measures.OVER_TRAINING, measures.LAST_THIRD, *([measures.at_kl(level)] if level else [])]
    explained = partial(measures.between, name="value/explained_variance")
    early = {f"explained variance, iterations {a} to {b}": partial(explained, first=a, last=b) for a, b in EARLY}
    columns = {**early, f"last {LATE}": explained_last, **{each.name: each.of for each in judged}}
    columns |= {
        "KL, last third": partial(measures.tail, name="eval/kl"),
        "CPU seconds per iteration": partial(measures.typical, name="time/cpu"),
    }
    usual = (POLICY, found.get(POLICY, []))
    drawn = [
        Line(label=s, colour=colour, runs=found[s]) for s, colour in zip(STARTS, COLOURS, strict=True) if s in found
    ]
    variance = partial(measures.points, x="iteration", y="value/explained_variance")
    panels = [
        Panel(title="Explained variance of the critic", of=variance, lines=drawn, mean_only=True, levels=[0]),
        Panel(
            title="Separate evaluator",
            of=measures.reward_over_rollouts,
            lines=drawn,
            x="responses sampled",
            y=EVALUATOR,
        ),
    ]
    return [
        _best(found),
        "",
        curves(pictures / "methods_critic.png", "Explained variance and evaluator", panels),
        "",
        *table(
            ["critic", *columns],
            [[s, *(measures.shown(mine, of) for of in columns.values())] for s, mine in found.items()],
        ),
        "",
        f"APA at λ {KL_LAMBDA:g}. Each run has the same number of rollouts, so that a warm-up of {WARMUP} iterations "
        f"leaves {WARMUP} fewer to the policy. {measures.HALF}.",
        "",
        DETAILS,
        *(
            line
            for each in judged
            for mine in found.items()
            if mine != usual
            for line in measures.sentences(mine, usual, [each])
        ),
    ]


def _best(found: Mapping[str, Sequence[Run]]) -> str:
    """The starts in the order of what they earned over training, and which of them the intervals tell apart."""
    means = {
        start: value.mean for start, runs in found.items() if (value := estimate(map(measures.OVER_TRAINING.of, runs)))
    }
    if len(means) < 2:
        return "Too few settings have runs to say which start is best."
    best, *rest = sorted(means, key=lambda start: -means[start])
    worse = [s for s in rest if measures.compare((best, found[best]), (s, found[s]), measures.OVER_TRAINING).sign]
    words = f"The evaluator's mean over training is highest with the critic *{best}* ({means[best]:.2f})."
    for title, starts in (
        ("Significantly lower", worse),
        ("No significant difference", [start for start in rest if start not in worse]),
    ):
        words += f" {title}: {'; '.join(f'*{s}* ({means[s]:.2f})' for s in starts)}." if starts else ""
    return words
