"""Length penalty: none, a mild and a strong one on tokens beyond 12, and what brevity costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Estimate, estimate
from apa_cli.runs.tables import spread
from apa_cli.tracking.style import BLUE, GREEN, ORANGE, new_figure, tidy, whole_iterations
from studies.beside import save
from studies.page import table
from studies.runs import Found, Setting, Size
from studies.steer import RECIPE, fixed

TITLE = "length penalty off, mild and strong, on responses beyond 12 tokens"
DURATION = "9 runs (3 of them shared with steer), about 10 minutes of one CPU core"
TARGET = 12
PENALTIES = (0.0, 0.05, 0.2)
KL_LAMBDA = 0.3
COLOURS = (BLUE, ORANGE, GREEN)


def penalised(penalty: float) -> Setting:
    """Without a penalty it is a setting of the study of KL, whose runs do for both."""
    if penalty == 0:
        return fixed(KL_LAMBDA)
    keys = {"objective.kl_lambda": KL_LAMBDA, "reward.length_target": TARGET, "reward.length_penalty": penalty}
    return Setting(name=f"apa_length{TARGET}_penalty{penalty:g}", recipe=RECIPE, keys=keys)


def settings(size: Size) -> list[Setting]:
    return [penalised(penalty) for penalty in PENALTIES]


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    plain = {run.seed: run for run in runs[penalised(0.0).name]}
    rows = []
    for penalty in PENALTIES:
        mine = runs[penalised(penalty).name]
        if not mine:
            continue
        figures = [
            estimate(run.last(f"eval/{name}") for run in mine) for name in ("response_length", "evaluator", "kl")
        ]
        length, evaluator, kl = figures
        first = estimate(run.first("eval/response_length") for run in mine)
        paid = estimate(map(last_penalty, mine))
        changes = [spread(difference(mine, plain, name), digits) for name, digits in LOST] if penalty else ["–", "–"]
        own = [spread(first, 1), spread(length, 1), spread(evaluator, 2), spread(kl, 1)]
        rows.append([f"{penalty:g}", *own, spread(paid, 2) if penalty else "–", *changes])
    header = ["penalty per token", "length before", "length after", "evaluator after", "KL", "penalty at the end",
              "length, change", "evaluator, change"]  # fmt: skip
    picture = draw(runs, pictures / "methods_rewards.png")
    return [
        f"`reward.length_target={TARGET}`, λ {KL_LAMBDA:g}, on held-out prompts. Length is in tokens, including the "
        "end token; changes are relative to the runs without a penalty, paired by seed. The evaluator ignores length "
        "as such: more friendly sentences score higher. ± is half the width of a 95 % interval over seeds.",
        "",
        *table(header, rows),
        "",
        f"![Length and evaluator over training](images/{picture.name})",
    ]


LOST = (("eval/response_length", 1), ("eval/evaluator", 2))


def last_penalty(run: Run) -> float | None:
    """What a response paid on average, over the last fifth of the rollouts."""
    paid = [row["reward/length_penalty"] for row in run.rows if row.get("reward/length_penalty") is not None]
    last = [value for value in paid[-max(1, len(paid) // 5) :] if value is not None]
    return math.fsum(last) / len(last) if last else None


def difference(mine: Sequence[Run], plain: dict[int, Run], name: str) -> Estimate | None:
    """At the end, less the run of the same seed without a penalty."""
    pairs = [(run.last(name), plain[run.seed].last(name)) for run in mine if run.seed in plain]
    return estimate(ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None)


def draw(runs: Found, path: Path) -> Path:
    """Every seed: length of the rollouts, and the evaluator on held-out prompts."""
    figure = new_figure(11.5, 4.2)
    left, right = figure.subplots(1, 2)
    for colour, penalty in zip(COLOURS, PENALTIES, strict=True):
        for i, run in enumerate(runs[penalised(penalty).name]):
            label = (f"{penalty:g} a token beyond {TARGET}" if penalty else "no penalty") if i == 0 else None
            for axes, name in ((left, "policy/response_length"), (right, "eval/evaluator")):
                points = [(row["iteration"], row[name]) for row in run.rows if row.get(name) is not None]
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, alpha=0.8, label=label)
    left.axhline(TARGET, color="0.6", linewidth=0.8, linestyle="--")
    for axes, title, unit in (
        (left, "Length of a response", "tokens"),
        (right, "Separate evaluator", "score per response"),
    ):
        tidy(axes, title)
        axes.set_ylabel(unit)
        axes.set_xlabel("iteration")
        whole_iterations(axes)
    return save(figure, path)
