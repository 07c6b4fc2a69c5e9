"""Summarise a run on the terminal and in report.md."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apa_cli.config.schema import TrainConfig
from apa_cli.secrets import printable
from apa_cli.tracking.pages import cell, format_number, format_seconds, markdown_table
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
        single = {name: metrics.get(f"eval/{name}") for name in cls.__dataclass_fields__ if name != "parts"}
        start = "eval/reward/"
        parts = {name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}
        return cls(**single, parts=parts)

    @classmethod
    def from_rollout(cls, metrics: Mapping[str, float | None]) -> Outcome:
        """From the metrics of one iteration, for a run without held-out prompts."""
        return cls(
            reward=metrics.get("reward/mean"),
            kl=metrics.get("kl/to_init"),
            entropy=metrics.get("policy/entropy"),
            unique_fraction=metrics.get("policy/unique_fraction"),
            response_length=metrics.get("policy/response_length"),
            eos_rate=metrics.get("policy/eos_rate"),
        )


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
        a, b = getattr(before, attribute), getattr(after, attribute)
        if a is not None or b is not None:
            rows.append((title, format_number(a, digits), format_number(b, digits), unit))
        if attribute == "reward":
            for name in dict.fromkeys((*before.parts, *after.parts)):
                a, b = before.parts.get(name), after.parts.get(name)
                rows.append((f"reward, {name}", format_number(a, digits), format_number(b, digits), unit))
    return rows


def summary_lines(summary: Summary) -> list[str]:
    """Reward, KL and entropy before → after, sample responses before → after, and where everything is."""
    rows = measured_rows(summary.before, summary.after)
    how = f", on {summary.measured_on}:" if rows else f"; {UNMEASURED}"
    lines = [f"{_count(summary)} in {format_seconds(summary.seconds)}{how}"]
    if summary.stopped:
        lines.insert(0, f"Stopped early: {summary.stopped}")
    title_width = max([len(title) for title, *_ in rows], default=0)
    before_width, after_width = (max([len(row[i]) for row in rows], default=0) for i in (1, 2))
    for title, before, after, unit in rows:
        lines.append(f"  {title:<{title_width}}  {before:>{before_width}} → {after:>{after_width}}  {unit}".rstrip())
    for pair in summary.samples[:2]:
        lines.append(f"  prompt: {_one_line(pair.prompt, tail=True)}")
        lines.append(f"    before ({pair.score_before:+.2f}): {_one_line(pair.before)}")
        lines.append(f"    after  ({pair.score_after:+.2f}): {_one_line(pair.after)}")
    lines.append(f"Folder    {summary.run_dir}")
    if summary.final_dir is not None:
        lines.append(f"Policy    {summary.final_dir}")
    if summary.plots:
        lines.append(f"Pictures  {summary.plots[0].parent}{os.sep}  ({', '.join(path.name for path in summary.plots)})")
    lines.append(f"Report    {summary.run_dir / REPORT_FILE}")
    return lines


def write_report(run_dir: Path, summary: Summary, config: TrainConfig) -> Path:
    """report.md in the run's folder; pictures and policy are linked relative to it."""
    parts = [f"# {run_dir.name}", ""]
    if summary.stopped:
        parts += [f"**Stopped early:** {summary.stopped}", ""]
    rows = measured_rows(summary.before, summary.after)
    how = f". Measured on {summary.measured_on}." if rows else f"; {UNMEASURED}."
    parts += [f"{_count(summary)} in {format_seconds(summary.seconds)}{how}", ""]
    if rows:
        parts += markdown_table(["", "before", "after", ""], (map(cell, row) for row in rows))
    for path in summary.plots:
        parts += ["", f"![{path.stem}]({_relative(path, run_dir)})"]
    if summary.samples:
        parts += ["", "## Responses before and after"]
    for pair in summary.samples:
        parts += ["", "Prompt:", "", _fenced(pair.prompt)]
        parts += ["", f"Before, score {pair.score_before:.3f}:", "", _fenced(pair.before)]
        parts += ["", f"After, score {pair.score_after:.3f}:", "", _fenced(pair.after)]
    parts += ["", "## Settings", "", "All of them: [config.yaml](config.yaml).", ""]
    parts += markdown_table(["", ""], ((name, cell(value)) for name, value in _settings(config)), numbers=False)
    if summary.final_dir is not None:
        final = _relative(summary.final_dir, run_dir)
        parts += [
            "",
            f"Aligned policy: [{final}]({final}). Metrics of every iteration: [metrics.jsonl](metrics.jsonl).",
        ]
    parts += ["", "Versions of Python and its packages: [versions.json](versions.json).", ""]
    path = run_dir / REPORT_FILE
    path.write_text(printable("\n".join(parts)), "utf-8", "backslashreplace")
    return path


def _count(summary: Summary) -> str:
    return "1 iteration" if summary.iterations == 1 else f"{summary.iterations} iterations"


def _settings(config: TrainConfig) -> list[tuple[str, object]]:
    objective = config.objective
    knob = f"{objective.knob[0]} {objective.knob[1]:g}"
    if objective.kl_target is not None:
        knob += f" at first, steered to a KL of {objective.kl_target:g} nats"
    adapter = f", LoRA rank {config.policy.adapter.r}" if config.policy.adapter.r else ""
    return [
        ("objective", f"{config.method}, {knob}"),
        ("policy", f"{config.policy.path}{adapter}"),
        ("reward", _reward(config)),
        ("prompts", config.data.path),
        ("responses an iteration", config.rollout.batch_size),
        ("passes × minibatch", f"{config.training.epochs_per_rollout} × {config.training.minibatch_size}"),
        ("learning rate", f"{config.optimizer.learning_rate:g}, {config.optimizer.schedule}"),
        (
            "temperature, longest response",
            f"{config.generation.temperature:g}, {config.generation.max_new_tokens} tokens",
        ),
        ("seed, precision", f"{config.seed}, {config.precision}"),
    ]


def _reward(config: TrainConfig) -> str:
    reward = config.reward
    if reward.length_penalty == 0:
        return reward.source
    return f"{reward.source}, less {reward.length_penalty:g} a token beyond {reward.length_target}"


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


def _relative(path: Path, run_dir: Path) -> str:
    return Path(os.path.relpath(path, run_dir)).as_posix()
