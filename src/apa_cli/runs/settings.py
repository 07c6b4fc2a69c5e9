"""Runs that differ in nothing but the seed make one setting; settings that differ in the KL knob make one line.

Statistics over seeds: mean ± half of a 95 % interval by Student's t, which with three seeds is 2.5 standard
deviations wide on either side, and which one seed does not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apa_cli.config.members import short_name
from apa_cli.config.objectives import knob_of, unread
from apa_cli.runs.folders import FINISHED, Run

FOOTNOTE = "± is half of a 95 % interval over seeds by Student's t; a setting with one seed has none."

# t for 95 % (two-sided) with 1, 2, … 30 degrees of freedom, from any table.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

_TARGET = "objective.kl_target"
_NOT_PART = ("seed", "output_dir", "resume", "device", "objective.name", _TARGET)


@dataclass(frozen=True)
class Estimate:
    mean: float
    half: float | None  # of the 95 % interval; None with one value
    count: int
    lowest: float
    highest: float


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """None where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    half = None
    if len(known) > 1:
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
        half = student_t(len(known) - 1) * deviation / math.sqrt(len(known))
    return Estimate(mean, half, len(known), min(known), max(known))


def student_t(degrees: int) -> float:
    """Two-sided 95 %. Beyond the table z + (z³ + z) / 4ν, which is within 0.002 there."""
    z = 1.959964
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else z + (z**3 + z) / (4 * degrees)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs alike but for the seed."""

    line: str  # what it shares with other settings on its line of the frontier: `APA`, `APA, learning_rate=1e-05`
    knob: str  # `λ 0.1`
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        return f"{self.line}, {self.knob}"

    @property
    def counted(self) -> tuple[Run, ...]:
        """Finished runs; where there is none yet, those that have figures."""
        finished = tuple(run for run in self.runs if run.status == FINISHED)
        return finished or tuple(run for run in self.runs if run.rows)

    def final(self, name: str) -> Estimate | None:
        """Over seeds, of the newest evaluation."""
        return estimate(run.last(name) for run in self.counted)


def group(runs: Sequence[Run]) -> list[Setting]:
    """Settings of the runs that have a configuration and figures; by objective, what else differs, and knob."""
    with_figures = [run for run in runs if run.config and run.rows]
    found: dict[tuple[str, float, str], list[Run]] = {}
    for method in dict.fromkeys(run.method for run in with_figures):
        alike = [run for run in with_figures if run.method == method]
        keys = differing(alike)
        words = {key: _words(key, keys, [run.config.get(key) for run in alike]) for key in keys}
        starts = {first_knob(run.config) for run in alike if run.config.get(_TARGET) is not None}
        for run in alike:
            parts = [method.upper(), *(words[key][str(run.config.get(key))] for key in keys)]
            if run.config.get(_TARGET) is not None and len(starts) > 1:
                parts.append(f"from {first_knob(run.config)}")
            found.setdefault((", ".join(parts), *knob(run.config)), []).append(run)
    lines = list(dict.fromkeys(line for line, *_ in found))
    order = sorted(found, key=lambda setting: (lines.index(setting[0]), setting[1]))
    return [Setting(line=line, knob=text, runs=tuple(found[line, value, text])) for line, value, text in order]


def differing(runs: Sequence[Run]) -> list[str]:
    """Keys with more than one value among runs of one objective, besides seed and knob.

    A key that only some runs have, of an older or newer version, does not count by itself.
    """
    objective = runs[0].objective if runs else ""
    left_out = {*_NOT_PART, f"objective.{knob_of(objective)[0]}", *unread(objective)}
    return [
        key
        for key in dict.fromkeys(key for run in runs for key in run.config)
        if key not in left_out
        and not key.startswith("tracking.")
        and len({str(run.config[key]) for run in runs if key in run.config}) > 1
    ]


def _words(key: str, keys: Sequence[str], values: Sequence[Any]) -> dict[str, str]:
    """`name=value` for each value of a key: of a path the last parts, as many as tell the paths apart."""
    texts = list(dict.fromkeys(map(str, values)))
    names = [short_name(other.removesuffix(".path")) for other in keys]
    name = short_name(key.removesuffix(".path"))
    name = key if names.count(name) > 1 else name
    shown = _tails(texts) if key.endswith("path") else texts
    pairs = zip(texts, shown, strict=True)
    return {text: f"{name}={part if part == ' '.join(part.split()) else repr(part)}" for text, part in pairs}


def _tails(paths: Sequence[str]) -> list[str]:
    parts = [path.rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts))):
        tails = ["/".join(part[-count:]) for part in parts]
        if len(set(tails)) == len(paths):
            return tails
    return list(paths)


def knob(config: Mapping[str, Any]) -> tuple[float, str]:
    """How far the policy may go: the KL that it is steered to, or else λ of APA and AWR, β of PPO."""
    key, symbol = knob_of(str(config.get("objective.name")))
    target = config.get(_TARGET)
    value = config.get(f"objective.{key}") if target is None else target
    if not isinstance(value, (int, float)):
        return math.inf, f"{symbol} {value}"
    return float(value), f"{symbol if target is None else 'KL target'} {value:g}"


def first_knob(config: Mapping[str, Any]) -> str:
    """λ or β as configured: fixed, or what steering begins from."""
    return knob({**config, _TARGET: None})[1]
