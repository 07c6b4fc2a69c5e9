"""Controlled sentiment with SmolLM2-135M-Instruct: a separate judge against KL, over four settings of every KL knob.

The frontier of Ziegler et al. (2019) and of figure 2 of Rafailov et al. (2023). The learning rate of each objective is
tuned on one seed at its second knob. `make smollm2` and scripts/build_sentiment.py fetch and write what is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from studies import compare, measures
from studies.compare import Row
from studies.draw import COLOURS, EVALUATOR, KL, Line, Panel, curves
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import TUNING_SEED, Contestant, Grid

PAGE, KEPT, TASK = "docs/results.md", "docs/results/sentiment", "film reviews with SmolLM2-135M-Instruct and LoRA"
title = "sentiment of film reviews with a real model: APA, PPO, GVPO and GRPO, the judge against KL"
duration = "40 runs of about 20 minutes on a CPU core each; those in docs/results/sentiment are not run again"
RECIPE = "sentiment_smollm2_lora_apa"
ITERATIONS, SEEDS = 40, 2
RATES = (3e-4, 1e-3)
LAMBDA, COEF = ("λ", "objective.kl_lambda"), ("β", "objective.kl_coef")
GROUPS = {"advantage.name": "group", "value.kind": "none", "rollout.responses_per_prompt": 8}
GPU = {"rollout.batch_size": 512, "training.minibatch_size": 128, "precision": "bf16"}
OBJECTIVES: dict[str, tuple[str, tuple[str, str], tuple[float, ...], dict[str, Any]]] = {
    "APA": ("apa", LAMBDA, (0.05, 0.1, 0.3, 1.0), {}),
    "PPO": ("ppo", COEF, (0.0, 0.02, 0.05, 0.2), {}),
    "GVPO": ("gvpo", LAMBDA, (0.1, 0.3, 1.0, 3.0), GROUPS),  # in units of the score, log-odds
    "GRPO": ("grpo", COEF, (0.0, 0.02, 0.05, 0.2), GROUPS),
}
KEYS = {"policy.path": "models/SmolLM2-135M-Instruct"}


def contestant(name: str, size: Size, knobs: slice = slice(None)) -> Contestant:
    preset, (knob, key), values, keys = OBJECTIVES[name]
    stem = f"sentiment_{preset}{'_gpu' if size.gpu else ''}"
    return Contestant(title=name, stem=stem, knob=knob, key=key, values=values[knobs], recipe=RECIPE, objective=preset,
                      keys={**KEYS, **keys, **(GPU if size.gpu else {})})  # fmt: skip


def tuning(size: Size) -> Grid:
    contestants = [contestant(name, size, slice(1, 2)) for name in OBJECTIVES]
    return Grid(contestants=contestants, rates=RATES[:1] if size.quick else RATES)


def settings(size: Size) -> list[Setting]:
    """All that may be run: every knob with every rate."""
    return Grid(contestants=[contestant(name, size) for name in OBJECTIVES], rates=tuning(size).rates).settings()


def chosen(found: Found, size: Size) -> dict[tuple[str, float], Setting]:
    """By objective and knob, at the learning rate that tuning chose."""
    rates = {each.title: rate for each, ((rate, _), _) in tuning(size).chosen(found).items()}
    return {
        (name, knob): each.setting((rates[name], knob))
        for name in rates
        for each in [contestant(name, size)]
        for knob in each.values
    }


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    yield tuning(size).settings(), [TUNING_SEED]
    yield list(chosen(read(), size).values()), size.seeds


COLUMNS = {
    **compare.LAST_THIRD,
    "entropy at the end": compare.mean("eval/entropy"),
    "distinct-2 at the end": compare.mean("eval/distinct_2", 3),
    **compare.SECONDS,
}
OVER = {  # panels of the picture: y, and of what, last third of training
    "Judge against KL": (EVALUATOR, "eval/evaluator"),
    "Entropy": ("nats per token", "eval/entropy"),
    "Distinct-2": ("different bigrams / bigrams", "eval/distinct_2"),
}


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    rows, seeds = [], dict[str, dict[int, list[Run]]]()
    for (name, knob), setting in chosen(found, size).items():
        runs = [run for run in found[setting.name] if run.seed != TUNING_SEED]
        each = contestant(name, size)
        rate = format(setting.keys["optimizer.learning_rate"], "g")
        rows.append(Row(cells=[name, each.said(knob), rate], name=f"{name} ({each.said(knob)})", runs=runs))
        for run in runs:
            seeds.setdefault(name, {}).setdefault(run.seed, []).append(run)
    # a line of the picture: one seed's runs, a point each
    drawn = [Line(label=name, colour=colour, runs=list(mine.values()))  # type: ignore[arg-type]
             for (name, mine), colour in zip(seeds.items(), COLOURS, strict=False)]  # fmt: skip
    panels = [Panel(title=panel, of=partial(_against_kl, name=name), lines=drawn, x=KL, y=y)  # type: ignore[arg-type]
              for panel, (y, name) in OVER.items()]  # fmt: skip
    return compare.report(
        rows,
        ["objective", "knob", "learning rate"],
        COLUMNS,
        lambda ours, theirs: [],
        picture=curves(pictures / "results_sentiment.png", "Judge, entropy and distinct-2 against KL", panels),
        note="A point is a run, thin lines are seeds. Reward and judge are log-odds of a positive review. KL is in "
        "nats per response, entropy in nats per token.",
    )


def _against_kl(runs: Sequence[Run], name: str) -> measures.Points:
    points = [(measures.tail(run, "eval/kl"), measures.tail(run, name)) for run in runs]
    return sorted((kl, value) for kl, value in points if kl is not None and value is not None)
