"""From the seconds of every iteration to medians, ratios, growth and verdicts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmark.jobs import GROWING, Job

PHASES = ("generate", "score", "forward", "update")
CRITIC = " value"  # ends the names of the floor's phases that only a critic of its own needs
LINEAR, FLAT = 1.2, 1.1
COPIES = 3  # of the trained weights: a gradient and AdamW's two moments

Row = dict[str, Any]  # by column; None: nothing to compare with


class Target(NamedTuple):
    what: str
    names: tuple[str, ...]  # contestants; the worst of them counts. (): every one of ours
    column: str
    at_least: bool
    limit: float


BOTH = ("ppo-separate", "apa-shared")
TARGETS = {
    "hh": [
        Target("PPO, separate value, responses/s over TRL PPO's", BOTH[:1], "× TRL PPO", True, 2.0),
        Target("APA, shared value, responses/s over TRL PPO's", BOTH[1:], "× TRL PPO", True, 3.5),
        Target("update over its floor, the slower of these two", BOTH, "update ÷ floor", False, 1.15),
        Target("memory beyond weights over TRL PPO's, the larger of two", BOTH, "÷ TRL PPO's", False, 0.4),
        Target("APA, no critic, responses/s over TRL GRPO's", ("apa-group",), "× TRL GRPO", True, 1.8),
    ],
    "fixed-2k": [
        Target("PPO, separate, responses/s over TRL PPO's", BOTH[:1], "× TRL PPO", True, 1.0),
        Target("APA, shared, responses/s over TRL PPO's", BOTH[1:], "× TRL PPO", True, 1.5),
    ],
    "fixed-50k": [
        Target("PPO, separate, responses/s over TRL PPO's", BOTH[:1], "× TRL PPO", True, 1.8),
        Target("memory beyond weights over TRL's", BOTH[:1], "÷ TRL PPO's", False, 0.5),
    ],
    "pythia-1b": [Target("PPO, separate, responses/s over TRL PPO's", BOTH[:1], "× TRL PPO", True, 4.0)],
    "llama-7b-lora": [Target("weights and memory, GiB in all", (), "GiB in all", False, 40.0)],
}
GPU_TARGETS = {"decoding, share of copy bandwidth": 0.5, "update, share of the bf16 matrix rate": 0.4}


class Verdict(NamedTuple):
    what: str
    at_least: bool
    limit: float
    measured: float | None

    @property
    def word(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "met" if met else "missed"

    def sentence(self) -> str:
        figure = "" if self.measured is None else f"{self.measured:.2f}, "
        return f"- {self.what}: {figure}target {'≥' if self.at_least else '≤'} {self.limit:g}, {self.word}."


def bare_seconds(step: Mapping[str, Any], *, own_critic: bool) -> tuple[float, float]:
    """Seconds of one iteration of the bare parts and of its update, with or without a critic of its own."""
    phases = {name: s for name, s in step["phases"].items() if own_critic or not name.endswith(CRITIC)}
    return sum(phases.values()), sum(s for name, s in phases.items() if name.startswith("update"))


def rows(job: Job, results: Mapping[str, Any]) -> dict[str, Row]:
    """One a contestant that has steps: medians over rounds; ratios are medians of the rounds' own ratios."""
    return {name: _row(name, job, results) for name, result in results.items() if result.get("steps")}


def _row(name: str, job: Job, results: Mapping[str, Any]) -> Row:
    steps, own = results[name]["steps"], name.endswith("-separate")
    seconds = median(step["seconds"] for step in steps)
    phases = {p: median(s["phases"].get(p, 0.0) + s["phases"].get(p + CRITIC, 0.0) for s in steps) for p in PHASES}
    # the floor trains all weights, on other prompts than groups have
    has_floor = name.startswith(("ppo-", "apa-")) and not name.endswith(("-adapter", "-group"))

    def ratio(other: str, of: Any) -> float | None:
        against = results.get(other, {}).get("steps") or []
        return median(of(mine, theirs) for mine, theirs in zip(steps, against, strict=False)) if against else None

    def memory(other: str) -> float | None:
        return _peak(results[name]) / most if (most := _peak(results.get(other, {}))) > 0 else None

    def bare(part: int, of: Any) -> float | None:
        return ratio("floor", lambda s, f: of(s) / bare_seconds(f, own_critic=own)[part]) if has_floor else None

    def quicker(s: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        return float(other["seconds"] / s["seconds"])

    return {
        "responses/s": job.responses / seconds,
        "seconds": seconds,
        **phases,
        "÷ floor": bare(0, lambda s: s["seconds"]),
        "update ÷ floor": bare(1, lambda s: s["phases"]["update"]),
        "× TRL PPO": ratio("trl-ppo", quicker),
        "× TRL GRPO": ratio("trl-grpo", quicker),
        "memory, MiB": _peak(results[name]) / 2**20,
        "÷ TRL PPO's": memory("trl-ppo"),
        "÷ TRL GRPO's": memory("trl-grpo"),
        "GiB in all": (results[name]["weight_bytes"] + _peak(results[name])) / 2**30,
    }


def _peak(result: Mapping[str, Any]) -> int:
    return max((step["beyond_bytes"] for step in result.get("steps") or []), default=0)


def cells(row: Row) -> list[str]:
    wide = ("memory, MiB", "working memory, MiB", "response tokens", "size")
    texts = {
        name: "–" if value is None else f"{value:,.0f}" if name in wide else f"{value:.{2 + name.startswith('ms')}f}"
        for name, value in row.items()
    }
    return list(texts.values())


def verdicts(job: Job, table: Mapping[str, Row]) -> list[Verdict]:
    """What the job says about its targets."""
    found = []
    for what, names, column, at_least, limit in TARGETS.get(job.name, []):
        names = names or tuple(name for name in table if not name.startswith("trl"))
        values = [value for name in names if name in table and (value := table[name][column]) is not None]
        worst = (min if at_least else max)(values) if values else None
        found.append(Verdict(what, at_least, limit, worst))
    return found


def point(job: Job, size: int, results: Mapping[str, Any], before: Row | None = None) -> Row:
    """A size along an axis of growth: working memory is the peak beyond weights, gradients and optimizer states, of
    the median round. `before`: the next smaller size."""
    result, tokens = results[GROWING.name], job.responses * job.response_tokens
    seconds = median(step["seconds"] for step in result["steps"])
    working = median(step["beyond_bytes"] for step in result["steps"]) - COPIES * result["trained_bytes"]
    per_token = 1000 * seconds / tokens
    more = tokens - before["response tokens"] if before else 0
    further = 1000 * (seconds - before["seconds"]) / more if before and more else None
    return {"size": size, "response tokens": tokens, "seconds": seconds, "ms per response token": per_token,
            "ms per further one": further, "working memory, MiB": working / 2**20}  # fmt: skip


def growth_verdicts(points: Mapping[str, Sequence[Row]]) -> list[Verdict]:
    """Linear in tokens along response and batch; flat memory along batch and vocabulary. The base of an axis first."""
    time, memory = "ms per response token", "working memory, MiB"
    said = {time: "seconds a response token, the largest over the smallest size's",
            memory: "memory beyond weights, gradients and optimizer, over the smallest size's"}  # fmt: skip
    asked = [("response", time, LINEAR), ("batch", time, LINEAR), ("batch", memory, FLAT), ("vocabulary", memory, FLAT)]
    found = []
    for axis, column, limit in asked:
        first, *rest = points.get(axis) or [{}]
        worst = max((row[column] / max(1e-9, first[column]) for row in rest), default=None)
        found.append(Verdict(f"growth with {axis}: {said[column]}", False, limit, worst))
    return found
