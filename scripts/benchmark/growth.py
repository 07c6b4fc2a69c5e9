"""How time and memory grow with the length of responses, the size of the batch and the vocabulary. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmark import records
from benchmark.jobs import SMALL, Contestant, Job
from benchmark.records import Record
from benchmark.summary import Verdict

BASE = Job(
    name="growth",
    title="growth",
    shape=replace(SMALL, vocabulary=8192),
    prompts="words",
    prompt_tokens=64,
    response_tokens=64,
    responses=16,
)
AXES: dict[str, tuple[int, ...]] = {
    "response": (64, 128, 256, 512),
    "batch": (16, 64, 256),
    "vocabulary": (8192, 32768, 131072),
}
LINEAR, FLAT = 1.2, 1.1
COPIES = 3  # of the trained weights: a gradient and AdamW's two moments


@dataclass(frozen=True, kw_only=True)
class Point:
    size: int
    tokens: int  # response tokens of an iteration
    seconds: float
    working_bytes: int  # peak beyond the weights, their gradients and the optimizer's state, of the median round

    @property
    def per_token(self) -> float:
        return self.seconds / self.tokens


def case(axis: str, size: int) -> Job:
    """The base, with one size changed; at the smallest size of an axis the base itself."""
    name = "growth-base" if size == AXES[axis][0] else f"growth-{axis}-{size}"
    if axis == "response":
        return replace(BASE, name=name, response_tokens=size)
    if axis == "batch":
        return replace(BASE, name=name, responses=size)
    return replace(BASE, name=name, shape=replace(BASE.shape, vocabulary=size))


def contestant() -> Contestant:
    return Contestant(name="apa-shared", kind="ours", objective="apa", value="shared")


def point(job: Job, size: int, result: Mapping[str, Any]) -> Point:
    steps = result["steps"]
    return Point(
        size=size,
        tokens=job.responses * job.response_tokens,
        seconds=median(step["seconds"] for step in steps),
        working_bytes=round(median(step["beyond_bytes"] for step in steps)) - COPIES * result["trained_bytes"],
    )


def measured(page: Path) -> tuple[dict[str, list[Point]], list[Record]]:
    """Points by axis, and their records; only what was measured where the smallest size was."""
    base = records.load(page, case("batch", AXES["batch"][0]))
    points: dict[str, list[Point]] = {}
    used: dict[str, Record] = {}
    for axis, sizes in AXES.items():
        for size in sizes:
            record = records.load(page, case(axis, size))
            result = (record.results if record else {}).get(contestant().name, {})
            if base is None or record is None or "error" in result or not result:
                continue
            if not record.comparable(base):
                print(f"{record.job.name} was measured elsewhere than {base.job.name}: left out, measure it again")
                continue
            points.setdefault(axis, []).append(point(record.job, size, result))
            used[record.job.name] = record
    return points, list(used.values())


def verdicts(points: Mapping[str, Sequence[Point]]) -> list[Verdict]:
    """Linear in tokens along response and batch; flat memory along batch and vocabulary."""
    found = []
    for axis in ("response", "batch"):
        along = points.get(axis) or []
        worst = max((p.per_token / along[0].per_token for p in along[1:]), default=None)
        found.append(
            Verdict(
                what=f"growth with {axis}: seconds a response token, the largest over the smallest size's",
                target=f"≤ {LINEAR:g}",
                measured=worst,
                met=None if worst is None else worst <= LINEAR,
            )
        )
    for axis in ("batch", "vocabulary"):
        along = points.get(axis) or []
        rise = max((p.working_bytes / max(1, along[0].working_bytes) for p in along[1:]), default=None)
        found.append(
            Verdict(
                what=f"growth with {axis}: memory beyond weights, gradients and optimizer, over the smallest size's",
                target=f"≤ {FLAT:g}",
                measured=rise,
                met=None if rise is None else rise <= FLAT,
            )
        )
    return found
