"""Runs read back from their folders: finished, failed, or still going. Imports no torch and writes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from apa_cli.checkpoints.find import checkpoints_in
from apa_cli.config.objectives import method_of
from apa_cli.config.yaml_files import load_yaml
from apa_cli.errors import UserError
from apa_cli.tracking.lines import read_json_lines
from apa_cli.tracking.metrics import METRICS_FILE, read_metrics
from apa_cli.tracking.samples import SAMPLES_FILE, SamplePair

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"  # the run's last act: there is one only where the run finished
FAILURE_FILE = "failed.json"  # what a sweep notes of a member that failed
ASIDE = ".unfinished-"  # a folder moved aside for another attempt is NAME.unfinished-1

FINISHED, FAILED, UNFINISHED = "finished", "failed", "running or stopped"

# Where there are no held-out prompts, the last rollout stands in.
_STAND_IN = {
    "eval/reward": "reward/mean",
    "eval/kl": "kl/to_init",
    "eval/entropy": "policy/entropy",
    "eval/response_length": "policy/response_length",
    "eval/eos_rate": "policy/eos_rate",
    "eval/unique_fraction": "policy/unique_fraction",
    "eval/distinct_2": "policy/distinct_2",
}
LARGEST = 1e100  # beyond it pictures cannot be drawn
_DEPTH = 2  # sweeps/ holds sweeps, which hold runs


@dataclass(frozen=True, kw_only=True)
class Run:
    folder: Path
    status: str  # FINISHED, FAILED or UNFINISHED
    reason: str = ""  # why it failed
    config: Mapping[str, Any] = field(default_factory=dict)  # dotted key to value; {} where it failed before it began
    overrides: tuple[str, ...] = ()
    rows: Sequence[Mapping[str, float | None]] = ()  # metrics.jsonl
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def objective(self) -> str:
        return str(self.config.get("objective.name", "?"))

    @property
    def method(self) -> str:
        """What its objective and advantage are called together: apa, gvpo, …"""
        return method_of(self.config)

    @property
    def iterations(self) -> int:
        return int(self.rows[-1]["iteration"] or 0) if self.rows else 0

    @cached_property
    def evaluated(self) -> bool:
        """Whether the figures of `last` are from held-out prompts."""
        return any(row.get("eval/kl") is not None for row in self.rows)

    def first(self, name: str) -> float | None:
        """An eval/* metric before training; None where it was not measured then."""
        return self.rows[0].get(name) if self.rows and self.rows[0]["iteration"] == 0 else None

    def last(self, name: str) -> float | None:
        """An eval/* metric of the newest evaluation, or its stand-in of the newest rollout where there was none."""
        if self.evaluated:
            return next(row for row in reversed(self.rows) if row.get("eval/kl") is not None).get(name)
        return self.rows[-1].get(_STAND_IN.get(name, name)) if self.rows else None

    def pairs(self, count: int = 2) -> list[SamplePair]:
        """The first prompts that were answered both before training and at the newest evaluation."""
        answers: dict[str, list[Mapping[str, Any]]] = {}
        try:
            samples = read_json_lines(self.folder / SAMPLES_FILE)
        except ValueError:
            samples = []
        for sample in samples:
            if sample.get("source") == "evaluation":
                answers.setdefault(str(sample.get("prompt")), []).append(sample)
        return [
            SamplePair(
                prompt=prompt,
                before=str(found[0]["response"]),
                after=str(found[-1]["response"]),
                score_before=_score(found[0]),
                score_after=_score(found[-1]),
            )
            for prompt, found in answers.items()
            if len(found) > 1
        ][:count]


def _score(sample: Mapping[str, Any]) -> float:
    """NaN where it was not finite, which JSON has no word for."""
    return math.nan if sample["score"] is None else float(sample["score"])


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG_FILE, METRICS_FILE, FAILURE_FILE))


def is_finished(folder: Path) -> bool:
    """There is a whole summary.json. One that a crash tore does not count."""
    return "iterations" in read_json(folder / SUMMARY_FILE)


def read_run(folder: Path) -> Run:
    """Raises UserError where a file of the run cannot be understood."""
    failure, summary = read_json(folder / FAILURE_FILE), read_json(folder / SUMMARY_FILE)
    status = FINISHED if "iterations" in summary else FAILED if failure else UNFINISHED
    overrides = failure.get("overrides") or _read_yaml(folder / "overrides.yaml") or ()
    config = _read_yaml(folder / CONFIG_FILE) or failure.get("config") or {}
    if not isinstance(config, dict):
        problem = "not a mapping of keys to values"
        raise UserError(str(folder / CONFIG_FILE), problem, "fix it, or leave this run out")
    try:
        lines = [row for row in read_metrics(folder) if isinstance(row, dict) and "iteration" in row]
        rows = [{name: _measured(name, value) for name, value in row.items()} for row in lines]
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(str(folder), str(error), "fix the line, or leave this run out") from error
    return Run(
        folder=folder,
        status=status,
        reason=str(failure.get("error", "")) if status == FAILED else "",
        config=flat(config),
        overrides=tuple(map(str, overrides)),
        rows=rows,
        summary=summary,
    )


def _measured(name: str, value: Any) -> float | None:
    """A metric as a number; None where it is not finite, or too large to be drawn. Raises ValueError."""
    if name == "iteration" and not isinstance(value, int):
        raise ValueError(f"{METRICS_FILE} has the iteration {value!r}, which is no whole number")
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value if value is not None and abs(value) < LARGEST else None
    raise ValueError(f"{METRICS_FILE} has {value!r:.40} as {name}, which is no number")


def find_runs(places: Sequence[str]) -> list[Path]:
    """Run folders that the user means by run folders, folders of runs and globs; each once, in order.

    Raises UserError where one of them is nothing or holds no run.
    """
    found: dict[Path, Path] = {}
    for place in places:
        matches = [Path(place)] if Path(place).exists() else [Path(match) for match in sorted(glob(place))]
        of_place = [folder for match in matches for folder in members(match)]
        if not matches:
            raise UserError(place, "no such folder", "name folders that apa-train wrote")
        if not of_place and Path(place).is_file():
            raise UserError(place, "a file, not a run's folder", "name the folder that it lies in")
        if not of_place:
            raise UserError(place, "no run in it", "name folders that apa-train wrote, or a folder of such folders")
        for folder in of_place:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def members(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The folder itself where it is a run, otherwise the runs below it; attempts moved aside are left out."""
    if folder.is_dir() and is_run(folder):
        yield folder
    elif folder.is_dir() and depth:
        for child in sorted(folder.iterdir(), key=lambda path: path.name):
            if ASIDE not in child.name and not child.name.startswith("."):
                yield from members(child, depth - 1)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves.update(flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return leaves


def read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file or a crash tore it."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        plain = load_yaml(path, str(path))
        nested = isinstance(plain, (dict, list))
        return OmegaConf.to_container(OmegaConf.create(plain), resolve=True) if nested else plain
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        problem = str(error).splitlines()[0]
        raise UserError(str(path), f"cannot be read: {problem}", "fix it, or leave this run out") from error


def learnt(run_dir: Path) -> bool:
    """Whether there is something of a run that beginning again would lose."""
    kept = any((run_dir / name).exists() for name in (SUMMARY_FILE, "final"))
    return kept or bool(checkpoints_in(run_dir / "checkpoints")) or read_run(run_dir).iterations > 0
