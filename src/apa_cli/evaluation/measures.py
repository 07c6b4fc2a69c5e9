"""Metrics of judged responses with their intervals, and win rates."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError
from apa_cli.evaluation.bootstrap import Estimate, bootstrap_mean, bootstrap_ratio, divide, jackknife
from apa_cli.evaluation.respond import JudgedResponse
from apa_cli.rollouts.statistics import ngrams

MISSING = Estimate(value=math.nan, low=math.nan, high=math.nan)
_RATES = {"win_rate": 1, "tie_rate": 0, "lose_rate": -1}

# name: (what it is, unit, digits)
LABELS = {
    "reward": ("training reward", "", 3),
    "evaluator": ("separate evaluator", "", 3),
    "unscored": ("without a training reward, and left out of it", "fraction", 3),
    "evaluator_unscored": ("without a score of the evaluator, and left out of it", "fraction", 3),
    "kl_exact": ("KL to the initial policy, exact", "nats a response", 3),
    "kl": ("KL, k1 estimate", "nats a response", 3),
    "kl_k3": ("KL, k3 estimate", "nats a response", 3),
    "entropy": ("entropy", "nats a token", 3),
    "response_length": ("response length", "tokens", 1),
    "eos_rate": ("ended by itself", "fraction", 3),
    "distinct_1": ("distinct-1", "fraction", 3),
    "distinct_2": ("distinct-2", "fraction", 3),
    "unique_fraction": ("different responses", "fraction", 3),
    "repetition": ("repeated 3-grams within a response", "fraction", 3),
    **{
        f"{prefix}{rate}": (label.format(judge), "fraction", 3)
        for prefix, judge in (
            ("", "training reward"),
            ("evaluator_", "separate evaluator"),
            ("judge_", "endpoint judge"),
        )
        for rate, label in (
            ("win_rate", "wins against the initial policy, {}"),
            ("tie_rate", "ties, {}"),
            ("lose_rate", "losses, {}"),
        )
    },
}


def label_of(name: str) -> tuple[str, str, int]:
    """The label of a metric; `reward/NAME` is one of several rewards."""
    if name in LABELS:
        return LABELS[name]
    group, _, part = name.partition("/")
    label, unit, digits = LABELS[group]
    return f"{label}, {part}", unit, digits


def in_order(names: Iterable[str]) -> list[str]:
    """Metrics in the order of the table: each of several rewards after their sum."""
    order = list(LABELS)
    return sorted(names, key=lambda name: order.index(name.partition("/")[0]))


def measure(
    responses: Sequence[JudgedResponse],
    initial: Sequence[JudgedResponse] | None = None,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """All figures of `responses`; with the initial policy's responses to the same prompts, win rates too.

    A response without a finite score is left out of the figures that need it, with its pair of a win rate; NaN where
    none is left. `unscored` and `evaluator_unscored`, the share of such responses, are there where there are any.
    """

    def mean(values: Sequence[float]) -> Estimate:
        return bootstrap_mean(values, resamples=resamples, seed=seed)

    def score_mean(values: Sequence[float]) -> Estimate:
        scored = [value for value in values if math.isfinite(value)]
        return mean(scored) if scored else MISSING

    ids = [response.token_ids for response in responses]
    lengths = [float(len(row)) for row in ids]
    figures = {
        "reward": score_mean([r.score for r in responses]),
        "kl_exact": mean([r.kl_exact for r in responses]),
        "kl": mean([r.kl for r in responses]),
        "kl_k3": mean([r.kl_k3 for r in responses]),
        "entropy": bootstrap_ratio([r.entropy for r in responses], lengths, resamples=resamples, seed=seed),
        "response_length": mean(lengths),
        "eos_rate": mean([float(r.ended) for r in responses]),
        "distinct_1": diversity([ngrams(row, 1) for row in ids]),
        "distinct_2": diversity([ngrams(row, 2) for row in ids]),
        "unique_fraction": diversity([[row] for row in ids]),
        "repetition": mean([repetition(row) for row in ids]),
    }
    for group, parts in (
        ("reward", [r.score_parts for r in responses]),
        ("evaluator", [r.evaluator_parts for r in responses]),
    ):
        for name in parts[0] if parts else ():
            figures[f"{group}/{name}"] = score_mean([row[name] for row in parts])
    judged = [r.evaluator for r in responses if r.evaluator is not None]
    if judged:
        figures["evaluator"] = score_mean(judged)
    for name, scores in (("unscored", [r.score for r in responses]), ("evaluator_unscored", judged)):
        if not all(map(math.isfinite, scores)):
            figures[name] = mean([float(not math.isfinite(score)) for score in scores])
    for prefix, attribute in (("", "score"), ("evaluator_", "evaluator")) if initial is not None else ():
        both = [(getattr(r, attribute), getattr(i, attribute)) for r, i in zip(responses, initial or (), strict=True)]
        known = [pair for pair in both if None not in pair]
        outcomes = [compare(*pair) for pair in known if all(map(math.isfinite, pair))]
        if outcomes:
            figures |= verdict_rates(prefix, outcomes, resamples=resamples, seed=seed)
        elif known:
            figures |= dict.fromkeys((f"{prefix}{name}" for name in _RATES), MISSING)
    return figures


def verdict_rates(prefix: str, outcomes: Sequence[int], *, resamples: int, seed: int) -> dict[str, Estimate]:
    """Win, tie and lose rates of outcomes 1, 0 and −1, as `{prefix}win_rate` and so on."""
    shares = {name: [float(outcome == meaning) for outcome in outcomes] for name, meaning in _RATES.items()}
    return {f"{prefix}{name}": bootstrap_mean(is_so, resamples=resamples, seed=seed) for name, is_so in shares.items()}


def compare(ours: float, theirs: float) -> int:
    """1 if ours is higher, −1 if lower, 0 within rounding (1e-6, absolute and relative)."""
    if abs(ours - theirs) <= 1e-6 * max(1.0, abs(ours), abs(theirs)):
        return 0
    return 1 if ours > theirs else -1


def diversity(things: Sequence[Sequence[Hashable]]) -> Estimate:
    """Different things over all things of a batch, one sequence a prompt, with a jackknife interval.

    Of n-grams it is distinct-n (Li et al. 2016), of whole responses the share of different ones; 0 when there are none.
    """
    counts: Counter[Hashable] = Counter(thing for row in things for thing in row)
    total = sum(counts.values())
    without = []
    for row in things:
        only_here = sum(counts[thing] == count for thing, count in Counter(row).items())
        without.append(divide(len(counts) - only_here, total - len(row)))
    return jackknife(divide(len(counts), total), without)


def repetition(row: Sequence[int], n: int = 3) -> float:
    """1 − distinct n-grams / n-grams within one response (seq-rep-n, Welleck et al. 2020); 0 if it has none."""
    grams = ngrams(row, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def check_best_metric(config: TrainConfig) -> None:
    """Raise UserError if no evaluation measures checkpoint.best_metric."""
    metric = config.checkpoint.best_metric
    parts = (("reward", config.reward), ("evaluator", config.evaluation.reward))
    several = [f"{group}/{name}" for group, reward in parts for name in reward.components]
    names = [f"eval/{name}" for name in (*LABELS, *several)]
    if metric is not None and metric not in names:
        near = difflib.get_close_matches(metric, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
        raise UserError("checkpoint.best_metric", f"{metric} is not measured", remedy)
