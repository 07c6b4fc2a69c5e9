"""Where the critic starts: from the policy or the reward model, with or without warm-up, or on the policy's trunk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from studies import compare, measures, steer
from studies.compare import Row
from studies.draw import COLOURS, EVALUATOR, Line, Panel, curves
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


def explained(first: int, last: int) -> compare.Column:
    return compare.mean(partial(measures.between, name="value/explained_variance", first=first, last=last))


def explained_late(run: Run) -> float | None:
    return measures.between(run, "value/explained_variance", run.iterations - LATE + 1, run.iterations)


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    rows = [Row(cells=[start], name=start, runs=runs[setting(start).name], against=POLICY if start != POLICY else "")
            for start in STARTS]  # fmt: skip
    drawn = [Line(label=row.name, colour=colour, runs=row.runs)
             for row, colour in zip(rows, COLOURS, strict=True) if row.runs]  # fmt: skip
    variance = partial(measures.points, x="iteration", y="value/explained_variance")
    left = Panel(title="Explained variance of the critic", of=variance, lines=drawn, mean_only=True, levels=[0])
    right = Panel(title="Separate evaluator", of=measures.reward_over_rollouts, lines=drawn, x="responses sampled",
                  y=EVALUATOR)  # fmt: skip
    columns = {f"explained variance, iterations {a} to {b}": explained(a, b) for a, b in EARLY}
    columns |= {f"last {LATE}": compare.mean(explained_late)}
    columns |= {measures.OVER_TRAINING.name: compare.mean(measures.over_training), **compare.LAST_THIRD}
    return compare.report(
        rows,
        ["critic"],
        {**columns, **compare.SECONDS},
        lambda ours, theirs: [measures.OVER_TRAINING, measures.LAST_THIRD, *measures.at_common_kl(ours, theirs)],
        picture=curves(pictures / "methods_critic.png", "Explained variance and evaluator", [left, right]),
        note=f"APA at λ {KL_LAMBDA:g}. Each run has the same number of rollouts, so that a warm-up of {WARMUP} "
        f"iterations leaves {WARMUP} fewer to the policy.",
    )
