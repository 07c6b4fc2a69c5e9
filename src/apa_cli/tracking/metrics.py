"""metrics.jsonl: every metric of every iteration."""

from __future__ import annotations

from pathlib import Path

from apa_cli.tracking.lines import read_json_lines

METRICS_FILE = "metrics.jsonl"

CONTRACT_METRICS = (
    "iteration",
    "reward/mean",
    "reward/std",
    "kl/to_init",
    "kl/to_init_per_token",
    "kl/to_init_k3",
    "policy/entropy",
    "policy/response_length",
    "policy/eos_rate",
    "policy/unique_fraction",
    "policy/distinct_2",
    "objective/policy_loss",
    "objective/value_loss",
    "objective/target_residual",
    "value/explained_variance",
    "optim/learning_rate",
    "optim/grad_norm",
    "time/iteration",
    "time/cpu",
    "time/generate",
    "time/score",
    "time/forward",
    "time/update",
    "throughput/tokens_per_second",
    "memory/peak_bytes",
)
"""Names that others rely on. `objective/target_residual` is APA's alone; without a critic `objective/value_loss` and
`value/explained_variance` are absent; evaluations add `eval/…`, several rewards `reward/NAME` and `reward/NAME_std`, a
length penalty `reward/length_penalty`, reward.kind=math `reward/unreadable`. `time/cpu` is processor time of this
process, all threads together. With rollout.source=offline `logged/…` describes the data, and `reward/…`, `kl/…` and
`policy/…`, of samples, are absent; `time/read` stands in place of `time/generate`."""


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Lines of a metrics.jsonl, or of the one in a run's folder, oldest first."""
    return read_json_lines(path / METRICS_FILE if path.is_dir() else path)
