"""Sums of two numbers with SmolLM2-135M-Instruct: the family, PPO with a critic and TRL's GRPO on a verifiable reward.

All sample as many responses to the same prompts and train an adapter of the same rank. `make smollm2` fetches the
model. Learning rate and KL knob are tuned over grids of equal size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from studies import compare, measures
from studies.draw import Panel, curves
from studies.measures import Measure
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import HEADER, Contestant, Grid

PAGE, KEPT, TASK = "docs/results.md", "docs/results/arithmetic", "sums with SmolLM2-135M-Instruct and LoRA"
title = "sums of two numbers with a real model: APA, GVPO, GRPO, PPO and TRL's GRPO, tuned alike"
duration = "30 runs of about 15 minutes on a CPU core each; those in docs/results/arithmetic are not run again"
RECIPE = "sums_smollm2_lora_apa"
ITERATIONS, SEEDS = 40, 2
RATES = (3e-4, 1e-3)
LAMBDA, COEF = ("λ", "objective.kl_lambda", (0.1, 0.3)), ("β", "objective.kl_coef", (0.0, 0.05))
KEYS: dict[str, Any] = {
    "policy.path": "models/SmolLM2-135M-Instruct",
    "evaluation.reward.kind": "math",  # the same check, of sums that training never sees
    "evaluation.reward.answer_column": "answer",
}
CRITIC = {"advantage.name": "gae", "value.kind": "shared", "rollout.responses_per_prompt": 1}
GPU = {"rollout.batch_size": 512, "training.minibatch_size": 128, "precision": "bf16"}
Y = "held-out sums, fraction right"


def grid(size: Size) -> Grid:
    def contestant(title: str, preset: str, knob: tuple[str, str, tuple[float, ...]], **more: Any) -> Contestant:
        keys = {**KEYS, **(GPU if size.gpu else {}), **more.pop("keys", {})}
        stem = f"sums_{title.replace(' ', '_').replace(chr(39), '').lower()}{'_gpu' if size.gpu else ''}"
        return Contestant(title=title, stem=stem, knob=knob[0], key=knob[1], values=knob[2], recipe=RECIPE,
                          objective=preset, keys=keys, **more)  # fmt: skip

    return Grid(
        contestants=[
            contestant("APA", "apa", LAMBDA),
            contestant("GVPO", "gvpo", LAMBDA),
            contestant("GRPO", "grpo", COEF),
            contestant("PPO", "ppo", COEF, keys=CRITIC),
            contestant("TRL's GRPO", "grpo", COEF, trl=True),
        ],
        rates=RATES[:1] if size.quick else RATES,
    )


def settings(size: Size) -> list[Setting]:
    return grid(size).settings()


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    return grid(size).stages(size, read)


def over_seconds(run: Run) -> measures.Points:
    """(CPU seconds of training so far, held-out accuracy)."""
    spent, line = 0.0, []
    for row in run.rows:
        spent += row.get("time/cpu") or 0.0
        if (right := row.get("eval/evaluator")) is not None:
            line.append((spent, right))
    return line


BEST = Measure(name="highest fraction right", of=lambda run: max((y for _, y in over_seconds(run)), default=None))
END = [Measure(name=f"{what} at the end", of=lambda run, name=name: run.last(f"eval/{name}"))  # type: ignore[misc]
       for what, name in (("fraction right", "evaluator"), ("KL", "kl"), ("entropy", "entropy"),
                          ("response length", "response_length"))]  # fmt: skip
COLUMNS = {
    "before": compare.mean(lambda run: run.first("eval/evaluator"), 3),
    **{each.name: compare.mean(each.of) for each in (*END, BEST)},
    **compare.SECONDS,
}


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    rows = grid(size).rows(found)
    common = {"lines": [line for _, line in rows], "y": Y}
    panels = [
        Panel(title="Per response", of=measures.reward_over_rollouts, x="responses sampled", **common),
        Panel(title="Per second", of=over_seconds, x="CPU seconds of training", **common),
        Panel(title="Against KL", of=measures.reward_over_kl, x="KL from the initial policy, nats per response",
              **common),
    ]  # fmt: skip
    said = compare.report(
        [row for row, _ in rows],
        HEADER,
        COLUMNS,
        lambda ours, theirs: [*END[:3], BEST],
        picture=curves(pictures / "results_arithmetic.png", "Held-out accuracy", panels, same_y=True),
        note="One sampled response to each held-out sum. KL is in nats per response, entropy in nats per token.",
    )
    return [*said, "", *grid(size).table(found)]
