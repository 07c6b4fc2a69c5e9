"""samples.jsonl: responses and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from apa_cli.tracking.jsonl import JsonLines

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


@dataclass(frozen=True, kw_only=True)
class SamplePair:
    """Responses of the initial and of the final policy to one prompt, and their scores."""

    prompt: str
    before: str
    after: str
    score_before: float
    score_after: float


class SamplesFile(JsonLines):
    """One line per response. `source` is `training` (of a rollout) or `evaluation` (to a held-out prompt)."""

    def log(self, iteration: int, samples: Sequence[Sample], *, source: str) -> None:
        for sample in samples:
            record = {"iteration": iteration, "source": source, **asdict(sample)}
            self.add({k: v for k, v in record.items() if k not in ("evaluator", "parts") or v not in (None, {})})
