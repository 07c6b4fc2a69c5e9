"""Length penalty: none, a mild and a strong one on tokens beyond 12, and what brevity costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from studies import compare, measures
from studies.compare import Row
from studies.draw import COLOURS, EVALUATOR, Line, Panel, curves
from studies.runs import Found, Setting, Size
from studies.steer import RECIPE, fixed

TITLE = "length penalty off, mild and strong, on responses beyond 12 tokens"
DURATION = "9 runs (3 of them shared with steer), about 10 minutes of one CPU core"
TARGET = 12
PENALTIES = (0.0, 0.05, 0.2)
KL_LAMBDA = 0.3
PLAIN = "no penalty"
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
    rows = []
    for penalty in PENALTIES:
        name = f"{penalty:g} a token beyond {TARGET}" if penalty else PLAIN
        mine = runs[penalised(penalty).name]
        rows.append(Row(cells=[f"{penalty:g}"], name=name, runs=mine, against=PLAIN if penalty else ""))
    drawn = [Line(label=row.name, colour=c, runs=row.runs) for row, c in zip(rows, COLOURS, strict=False) if row.runs]
    length, judged = (
        partial(measures.points, x="iteration", y=n) for n in ("policy/response_length", "eval/evaluator")
    )
    panels = [
        Panel(title="Length of a response", of=length, lines=drawn, y="tokens", levels=[TARGET]),
        Panel(title="Separate evaluator", of=judged, lines=drawn, y=EVALUATOR),
    ]
    columns = {
        "length before": compare.mean(lambda run: run.first("eval/response_length"), 1),
        "length after": compare.mean("eval/response_length", 1),
        "evaluator after": compare.mean("eval/evaluator"),
        "KL": compare.mean("eval/kl", 1),
        "penalty at the end": compare.mean(partial(measures.tail, name="reward/length_penalty", part=5)),
    }
    return compare.report(
        rows,
        ["penalty per token"],
        columns,
        lambda ours, theirs: CHANGES,
        picture=curves(pictures / "methods_rewards.png", "Length and evaluator over training", panels),
        note=f"`reward.length_target={TARGET}`, λ {KL_LAMBDA:g}, on held-out prompts. Length is in tokens, including "
        "the end token. The evaluator ignores length as such: more friendly sentences score higher.",
    )
