"""From the seconds of every iteration to medians, ratios and verdicts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmark.jobs import Job

PHASES = ("generate", "score", "forward", "update")
CRITIC = " value"  # ends the names of the floor's phases that only a critic of its own needs


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant of one job: medians over rounds; ratios are medians of the rounds' own ratios."""

    name: str
    rounds: int
    seconds: float
    responses_per_second: float
    phases: dict[str, float]
    beyond_bytes: int  # peak memory beyond the loaded weights, the highest of all rounds
    weight_bytes: int
    floor: float | None = None  # seconds over the floor's
    update_floor: float | None = None  # seconds of the update over the floor's
    trl_ppo: float | None = None  # responses a second over TRL PPO's
    trl_grpo: float | None = None
    memory_trl_ppo: float | None = None
    memory_trl_grpo: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    what: str
    target: str
    measured: float | None  # None = not measured
    met: bool | None

    @property
    def word(self) -> str:
        return "not measured" if self.met is None else "met" if self.met else "missed"


def floor_seconds(step: Mapping[str, Any], *, own_critic: bool) -> tuple[float, float]:
    """Seconds of one iteration of the bare parts and of its update, with or without a critic of its own."""
    phases = {name: s for name, s in step["phases"].items() if own_critic or not name.endswith(CRITIC)}
    return sum(phases.values()), sum(s for name, s in phases.items() if name.startswith("update"))


def rows(job: Job, results: Mapping[str, Any]) -> list[Row]:
    """One a contestant that has steps, in the order of the round."""
    return [_row(name, job, results) for name, result in results.items() if result.get("steps")]


def _row(name: str, job: Job, results: Mapping[str, Any]) -> Row:
    steps = results[name]["steps"]
    phases = {p: median(s["phases"].get(p, 0.0) + s["phases"].get(p + CRITIC, 0.0) for s in steps) for p in PHASES}
    seconds = median(step["seconds"] for step in steps)
    return Row(
        name=name,
        rounds=len(steps),
        seconds=seconds,
        responses_per_second=job.responses / seconds,
        phases=phases,
        beyond_bytes=_peak(results[name]),
        weight_bytes=results[name]["weight_bytes"],
        **(_to_floor(name, steps, results) if name.startswith(("ppo-", "apa-")) else {}),
        **{
            key.replace("-", "_"): _paired(steps, results, key, lambda own, other: other["seconds"] / own["seconds"])
            for key in ("trl-ppo", "trl-grpo")
        },
        **{f"memory_{key.replace('-', '_')}": _memory_ratio(name, key, results) for key in ("trl-ppo", "trl-grpo")},
    )


def _to_floor(name: str, steps: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, float | None]:
    name = name.removesuffix("-compiled")
    if name.endswith(("-adapter", "-group")):  # the floor trains all weights, on other prompts
        return {}
    own = name.endswith("-separate")
    return {
        "floor": _paired(steps, results, "floor", lambda s, f: s["seconds"] / floor_seconds(f, own_critic=own)[0]),
        "update_floor": _paired(
            steps, results, "floor", lambda s, f: s["phases"]["update"] / floor_seconds(f, own_critic=own)[1]
        ),
    }


def _paired(steps: Sequence[Mapping[str, Any]], results: Mapping[str, Any], other: str, ratio: Any) -> float | None:
    against = results.get(other, {}).get("steps") or []
    pairs = [ratio(own, theirs) for own, theirs in zip(steps, against, strict=False)]
    return median(pairs) if pairs else None


def _memory_ratio(name: str, other: str, results: Mapping[str, Any]) -> float | None:
    peak = _peak(results.get(other, {}))
    return _peak(results[name]) / peak if peak > 0 else None


def _peak(result: Mapping[str, Any]) -> int:
    return max((step["beyond_bytes"] for step in result.get("steps") or []), default=0)


def verdicts(jobs: Mapping[str, Sequence[Row]]) -> list[Verdict]:
    """What the jobs that were run say about the targets."""
    found = {(job, row.name): row for job, table in jobs.items() for row in table}

    def at_least(job: str, name: str, field: str, least: float, what: str) -> Verdict:
        measured = getattr(found.get((job, name)), field, None)
        return Verdict(
            what=what, target=f"≥ {least:g}", measured=measured, met=None if measured is None else measured >= least
        )

    def at_most(job: str, names: Sequence[str], field: str, most: float, what: str) -> Verdict:
        values = [getattr(found[job, name], field) for name in names if (job, name) in found]
        values = [value for value in values if value is not None]
        measured = max(values, default=None)
        return Verdict(
            what=what, target=f"≤ {most:g}", measured=measured, met=None if measured is None else measured <= most
        )

    both = ("ppo-separate", "apa-shared")
    return [
        at_least("hh", "ppo-separate", "trl_ppo", 2.0, "HH: PPO, separate value, responses/s over TRL PPO's"),
        at_least("hh", "apa-shared", "trl_ppo", 3.5, "HH: APA, shared value, responses/s over TRL PPO's"),
        at_most("hh", both, "update_floor", 1.15, "HH: update over its floor, the slower of these two"),
        at_most("hh", both, "memory_trl_ppo", 0.4, "HH: memory beyond weights over TRL PPO's, the larger of two"),
        at_least("hh", "apa-group", "trl_grpo", 1.8, "HH: APA, no critic, responses/s over TRL GRPO's"),
        at_least("fixed-2k", "ppo-separate", "trl_ppo", 1.0, "64 + 64, 2,048: PPO, separate, over TRL PPO's"),
        at_least("fixed-2k", "apa-shared", "trl_ppo", 1.5, "64 + 64, 2,048: APA, shared, over TRL PPO's"),
        at_least("fixed-50k", "ppo-separate", "trl_ppo", 1.8, "64 + 64, 50,304: PPO, separate, over TRL PPO's"),
        at_most(
            "fixed-50k", ("ppo-separate",), "memory_trl_ppo", 0.5, "64 + 64, 50,304: memory beyond weights over TRL's"
        ),
        at_least("pythia-1b", "ppo-separate", "trl_ppo", 4.0, "GPU: Pythia 1B, PPO, separate, over TRL PPO's"),
        _within("llama-7b-lora", found, 40.0),
    ]


def _within(job: str, found: Mapping[tuple[str, str], Row], gibibytes: float) -> Verdict:
    """Weights and peak together, of every contestant of ours."""
    values = [
        (row.weight_bytes + row.beyond_bytes) / 2**30
        for (name, contestant), row in found.items()
        if name == job and not contestant.startswith("trl")
    ]
    measured = max(values, default=None)
    return Verdict(
        what="GPU: Llama 7B with LoRA, GiB in all",
        target=f"≤ {gibibytes:g}",
        measured=measured,
        met=None if measured is None else measured <= gibibytes,
    )
