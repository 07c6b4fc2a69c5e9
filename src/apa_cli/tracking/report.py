"""Summarise a run on the terminal and in report.md."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apa_cli.config.schema import TrainConfig
from apa_cli.secrets import printable
from apa_cli.tracking.pages import cell, format_number, format_seconds, image, markdown_table, relative
from apa_cli.tracking.samples import SamplePair

REPORT_FILE = "report.md"
UNMEASURED = "how the policy does was not measured"  # logged responses without an evaluation


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a policy does; None where it was not measured.

    KL in nats per response, entropy in nats per token, length in tokens.
    """

    reward: float | None = None
    evaluator: float | None = None
    kl: float | None = None
    entropy: float | None = None
    unique_fraction: float | None = None
    response_length: float | None = None
    eos_rate: float | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)  # of several rewards, by name

    @classmethod
    def from_evaluation(cls, metrics: Mapping[str, float | None]) -> Outcome:
        """From the names that begin with `eval/`."""
        start = "eval/reward/"
        parts = {name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}
        return cls(**{name: metrics.get(f"eval/{name}") for _, name, *_ in _ROWS}, parts=parts)

    @classmethod
    def from_rollout(cls, metrics: Mapping[str, float | None]) -> Outcome:
        """From the metrics of one iteration, for a run without held-out prompts."""
        names = {"reward": "reward/mean", "evaluator": "", "kl": "kl/to_init"}
        return cls(**{name: metrics.get(names.get(name, f"policy/{name}")) for _, name, *_ in _ROWS}, parts={})


@dataclass(frozen=True, kw_only=True)
class Summary:
    before: Outcome
    after: Outcome
    samples: Sequence[SamplePair] = ()
    iterations: int
    seconds: float
    run_dir: Path
    final_dir: Path | None = None  # where the policy was exported, if it was
    plots: Sequence[Path] = ()
    measured_on: str = "held-out prompts"
    stopped: str | None = None  # why the run ended early, if it did


# Title, attribute, unit, digits.
_ROWS = (
    ("reward", "reward", "", 3),
    ("separate evaluator", "evaluator", "", 3),
    ("KL from the start", "kl", "nats per response", 2),
    ("entropy", "entropy", "nats per token", 3),
    ("different responses", "unique_fraction", "fraction", 2),
    ("response length", "response_length", "tokens", 1),
    ("ended by itself", "eos_rate", "fraction", 2),
)


def measured_rows(before: Outcome, after: Outcome) -> list[tuple[str, str, str, str]]:
    """(what, before, after, unit) of everything measured at least once."""
    rows = []
    for title, attribute, unit, digits in _ROWS:
        found = [(title, getattr(before, attribute), getattr(after, attribute))]
        if attribute == "reward":
            names = dict.fromkeys((*before.parts, *after.parts))
            found += [(f"reward, {name}", before.parts.get(name), after.parts.get(name)) for name in names]
        rows += [
            (what, format_number(a, digits), format_number(b, digits), unit)
            for what, a, b in found
            if a is not None or b is not None
        ]
    return rows


def _opening(summary: Summary) -> str:
    return f"{summary.iterations} iteration{'s' * (summary.iterations != 1)} in {format_seconds(summary.seconds)}"


def summary_lines(summary: Summary) -> list[str]:
    """Reward, KL and entropy before → after, sample responses before → after, and where everything is."""
    rows = measured_rows(summary.before, summary.after)
    lines = [f"Stopped early: {summary.stopped}"] if summary.stopped else []
    lines.append(_opening(summary) + (f", on {summary.measured_on}:" if rows else f"; {UNMEASURED}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for title, before, after, unit in rows:
        numbers = f"{before:>{widths[1]}} → {after:>{widths[2]}}"
        lines.append(f"  {title:<{widths[0]}}  {numbers}  {unit}".rstrip())
    for pair in summary.samples[:2]:
        lines.append(f"  prompt: {_one_line(pair.prompt, tail=True)}")
        lines.append(f"    before ({pair.score_before:+.2f}): {_one_line(pair.before)}")
        lines.append(f"    after  ({pair.score_after:+.2f}): {_one_line(pair.after)}")
    lines.append(f"Folder    {summary.run_dir}")
    if summary.final_dir is not None:
        lines.append(f"Policy    {summary.final_dir}")
    if summary.plots:
        lines.append(f"Pictures  {summary.plots[0].parent}{os.sep}  ({', '.join(path.name for path in summary.plots)})")
    return [*lines, f"Report    {summary.run_dir / REPORT_FILE}"]


def write_report(run_dir: Path, summary: Summary, config: TrainConfig) -> Path:
    """report.md in the run's folder; pictures and policy are linked relative to it."""
    parts = [f"# {run_dir.name}", ""]
    if summary.stopped:
        parts += [f"**Stopped early:** {summary.stopped}", ""]
    rows = measured_rows(summary.before, summary.after)
    parts += [_opening(summary) + (f". Measured on {summary.measured_on}." if rows else f"; {UNMEASURED}."), ""]
    if rows:
        parts += markdown_table(["", "before", "after", ""], (map(cell, row) for row in rows))
    for path in summary.plots:
        parts += ["", image(path, run_dir)]
    if summary.samples:
        parts += ["", "## Responses before and after"]
    for pair in summary.samples:
        parts += ["", "Prompt:", "", _fenced(pair.prompt)]
        parts += ["", f"Before, score {pair.score_before:.3f}:", "", _fenced(pair.before)]
        parts += ["", f"After, score {pair.score_after:.3f}:", "", _fenced(pair.after)]
    parts += ["", "## Settings", "", "All of them: [config.yaml](config.yaml).", ""]
    parts += markdown_table(["", ""], ((name, cell(value)) for name, value in _settings(config)), numbers=False)
    if summary.final_dir is not None:
        final = relative(summary.final_dir, run_dir)
        metrics = "Metrics of every iteration: [metrics.jsonl](metrics.jsonl)."
        parts += ["", f"Aligned policy: [{final}]({final}). {metrics}"]
    parts += ["", "Versions of Python and its packages: [versions.json](versions.json).", ""]
    path = run_dir / REPORT_FILE
    path.write_text(printable("\n".join(parts)), "utf-8", "backslashreplace")
    return path


def _settings(config: TrainConfig) -> list[tuple[str, object]]:
    objective, reward, generation = config.objective, config.reward, config.generation
    knob = f"{objective.knob[0]} {objective.knob[1]:g}"
    if objective.kl_target is not None:
        knob += f" at first, steered to a KL of {objective.kl_target:g} nats"
    adapter = f", LoRA rank {config.policy.adapter.r}" if config.policy.adapter.r else ""
    penalty = f", less {reward.length_penalty:g} a token beyond {reward.length_target}" if reward.length_penalty else ""
    return [
        ("objective", f"{config.method}, {knob}"),
        ("policy", f"{config.policy.path}{adapter}"),
        ("reward", f"{reward.source}{penalty}"),
        ("prompts", config.data.path),
        ("responses an iteration", config.rollout.batch_size),
        ("passes × minibatch", f"{config.training.epochs_per_rollout} × {config.training.minibatch_size}"),
        ("learning rate", f"{config.optimizer.learning_rate:g}, {config.optimizer.schedule}"),
        ("temperature, longest response", f"{generation.temperature:g}, {generation.max_new_tokens} tokens"),
        ("seed, precision", f"{config.seed}, {config.precision}"),
    ]


def _one_line(text: str, width: int = 64, *, tail: bool = False) -> str:
    """Whitespace folded and cut to `width`; with `tail` the end is kept, where a long prompt comes to its point."""
    folded = " ".join(text.split())
    if len(folded) <= width:
        return folded or "(empty)"
    return "…" + folded[1 - width :] if tail else folded[: width - 1] + "…"


def _fenced(text: str) -> str:
    """A code block that the text itself cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
