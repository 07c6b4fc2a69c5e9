"""samples.jsonl: what the policy wrote, and how it scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from apa_cli.tracking.jsonl import JsonLines
from apa_cli.tracking.patient_file import DiskTrouble

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One response. `kl` is k1 from the initial policy, nats, None of a logged one, which the policy did not write;
    `evaluator` the separate evaluator's score, if any."""

    prompt: str
    response: str
    score: float
    kl: float | None
    evaluator: float | None = None
    parts: dict[str, float] = field(default_factory=dict)  # of several rewards, each without its weight


class SamplesFile:
    """One line a response. `source` is `training` (of a rollout) or `evaluation` (to a held-out prompt)."""

    def __init__(self, path: Path, *, start_iteration: int | None = None, trouble: DiskTrouble | None = None) -> None:
        self.lines = JsonLines(path, start_iteration=start_iteration, trouble=trouble)

    def write(self, iteration: int, samples: Sequence[Sample], *, source: str) -> None:
        for sample in samples:
            record = {"iteration": iteration, "source": source, **asdict(sample)}
            for name in ("evaluator", "parts"):
                if record[name] in (None, {}):
                    del record[name]
            self.lines.write(record)

    def sync(self) -> bool:
        return self.lines.sync()

    def close(self) -> None:
        self.lines.close()
