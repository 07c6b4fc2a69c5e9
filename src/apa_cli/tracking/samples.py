"""samples.jsonl: responses and their scores."""

from __future__ import annotations

from dataclasses import dataclass, field

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
