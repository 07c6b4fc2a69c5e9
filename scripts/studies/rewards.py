"""Length penalty: none, a mild and a strong one on tokens beyond 12, and what brevity costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from apa_cli.runs.tables import spread
from studies import measures
from studies.draw import COLOURS, EVALUATOR, Line, Panel, curves
from studies.page import table
from studies.runs import Found, Setting, Size
from studies.steer import RECIPE, fixed

TITLE = "length penalty off, mild and strong, on responses beyond 12 tokens"
DURATION = "9 runs (3 of them shared with steer), about 10 minutes of one CPU core"
TARGET = 12
PENALTIES = (0.0, 0.05, 0.2)
KL_LAMBDA = 0.3
CHANGES = (
    measures.Measure(name="length", of=lambda run: run.last("eval/response_length"), digits=1),
    measures.Measure(name="evaluator", of=lambda run: run.last("eval/evaluator")),
)


def penalised(penalty: float) -> Setting:
    """Without a penalty it is a setting of the study of KL, whose runs do for both."""
    if penalty == 0:
        return fixed(KL_LAMBDA)
    keys = {"objective.kl_lambda": KL_LAMBDA, "reward.length_target": TARGET, "reward.length_penalty": penalty}
    return Setting(name=f"apa_length{TARGET}_penalty{penalty:g}", recipe=RECIPE, keys=keys)


def settings(size: Size) -> list[Setting]:
    return [penalised(penalty) for penalty in PENALTIES]


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    plain, rows, drawn = runs[penalised(0.0).name], [], []
    for penalty, colour in zip(PENALTIES, COLOURS, strict=False):
        mine = runs[penalised(penalty).name]
        if not mine:
            continue
        row = [f"{penalty:g}", measures.shown(mine, lambda run: run.first("eval/response_length"), 1)]
        row += [
            measures.shown(mine, "eval/response_length", 1),
            measures.shown(mine, "eval/evaluator"),
            measures.shown(mine, "eval/kl", 1),
        ]
        row += [measures.shown(mine, partial(measures.tail, name="reward/length_penalty", part=5)) if penalty else "–"]
        changes = [measures.compare(("with", mine), ("without", plain), each) for each in CHANGES]
        rows.append([*row, *(spread(each.value, each.measure.digits) if penalty else "–" for each in changes)])
        label = f"{penalty:g} a token beyond {TARGET}" if penalty else "no penalty"
        drawn.append(Line(label=label, colour=colour, runs=mine))
    length, judged = (
        partial(measures.points, x="iteration", y=name) for name in ("policy/response_length", "eval/evaluator")
    )
    panels = [
        Panel(title="Length of a response", of=length, lines=drawn, y="tokens", levels=[TARGET]),
        Panel(title="Separate evaluator", of=judged, lines=drawn, y=EVALUATOR),
    ]
    header = ["penalty per token", "length before", "length after", "evaluator after", "KL", "penalty at the end",
              "length, change", "evaluator, change"]  # fmt: skip
    return [
        f"`reward.length_target={TARGET}`, λ {KL_LAMBDA:g}, on held-out prompts. Length is in tokens, including the "
        "end token; changes are relative to the runs without a penalty, paired by seed. The evaluator ignores length "
        f"as such: more friendly sentences score higher. {measures.HALF}.",
        "",
        *table(header, rows),
        "",
        curves(pictures / "methods_rewards.png", "Length and evaluator over training", panels),
    ]
