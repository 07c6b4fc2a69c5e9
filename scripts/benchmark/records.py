"""What was measured of each job, with where and when, in a file of its own: the page is written from all of them.

The files lie in a folder beside the page, named like it. Measuring one job anew leaves the others as they are.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark.jobs import Job, Shape

COMPARED = ("hardware", "threads", "system", "versions")  # figures that differ in one of these are not set side by side


@dataclass(frozen=True, kw_only=True)
class Record:
    key: str  # of code, sizes and versions: what has the same need not be measured again
    job: Job
    prompt_lengths: list[list[int]]  # of each batch
    results: dict[str, Any]  # by contestant
    facts: dict[str, str]  # hardware, threads, memory, system, versions, date
    commit: str
    gpu: dict[str, float] | None = None  # its copy bandwidth and matrix rate, measured then

    @property
    def when(self) -> str:
        return f"{self.facts['date']}, commit {self.commit}"

    def comparable(self, other: Record) -> bool:
        return all(self.facts.get(name) == other.facts.get(name) for name in COMPARED)


def folder(page: Path) -> Path:
    return page.with_suffix("")


def save(page: Path, record: Record) -> Path:
    file = folder(page) / f"{record.job.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(record), ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def load(page: Path, job: Job) -> Record | None:
    """What was measured of exactly this job; None where nothing was, or at other sizes."""
    file = folder(page) / f"{job.name}.json"
    if not file.exists():
        return None
    saved = json.loads(file.read_text(encoding="utf-8"))
    measured = Job(**{**saved["job"], "shape": Shape(**saved["job"]["shape"])})
    return Record(**{**saved, "job": measured}) if measured == job else None


def together(records: Sequence[Record]) -> dict[str, str]:
    """The facts that hold for all records."""
    return {
        name: value
        for name, value in (records[0].facts if records else {}).items()
        if name != "date" and all(record.facts.get(name) == value for record in records)
    }


def apart(record: Record, shared: Mapping[str, str]) -> str:
    """When a record was measured, and where that was not where the others were."""
    own = [f"{name} {value}" for name, value in record.facts.items() if name != "date" and name not in shared]
    return f"Measured {record.when}{', on ' + '; '.join(own) if own else ''}."


def commit(root: Path) -> str:
    """Of the code that is measured; a plus where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "scripts")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
