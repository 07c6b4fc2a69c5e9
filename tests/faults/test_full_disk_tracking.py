"""Metrics, samples and log in files that the system lets grow no further for a while."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment

# A run of 30 iterations whose files may grow no further from the fifth on, and again from the twentieth.
RUN = """
import logging, os, resource, sys
from pathlib import Path
from apa_cli.config.schema import TrainConfig
from apa_cli.tracking.samples import Sample
from apa_cli.tracking.tracker import Tracker

folder, limited, freed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "freed"
config = TrainConfig(output_dir=str(folder))
config.training.iterations, config.tracking.console, config.tracking.wandb.mode = 30, "plain", "disabled"
with Tracker(config, folder).begin() as tracker:
    for iteration in range(1, 31):
        if iteration == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limited, resource.RLIM_INFINITY))
        if iteration == 20 and freed:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sample = Sample(prompt="p" * 50, response=f"ä{iteration}", score=1.0, kl=0.5)
        tracker.log(iteration, {"reward/mean": 1.0 + iteration}, [sample] * 4)
        tracker.note(f"note {iteration}")
        if iteration % 7 == 0:
            print(f"sync {iteration} {tracker.sync()}")
    assert [row["iteration"] for row in tracker.metrics()] == list(range(1, 31))
"""


def run(folder: Path, *, limit: int, freed: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(limit), "freed" if freed else "full"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(),
        encoding="utf-8",
    )


def assert_nothing_lost(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    metrics = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in metrics] == [{"iteration": i, "reward/mean": 1.0 + i} for i in range(1, 31)]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(s["iteration"], s["response"]) for s in samples] == [(i, f"ä{i}") for i in range(1, 31) for _ in range(4)]
    log = (folder / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line.split()[-1] for line in log if ": note " in line] == [str(i) for i in range(1, 31)]
    warnings = [line for line in done.stderr.splitlines() if line]
    assert len(warnings) == 2, done.stderr
    assert "kept in memory" in warnings[0]
    assert "can be written again" in warnings[1]
    assert sum("kept in memory" in line for line in log) == 1
    synced = [line.split() for line in done.stdout.splitlines() if line.startswith("sync ")]
    assert synced == [["sync", str(i), str(i not in (7, 14))] for i in (7, 14, 21, 28)]


@pytest.mark.parametrize("limit", [1024, 2777])
def test_a_file_size_limit_that_is_lifted(tmp_path: Path, limit: int):
    """EFBIG, in the middle of a line of metrics, or of samples and log."""
    assert_nothing_lost(tmp_path, run(tmp_path, limit=limit))


def test_lines_that_are_refused_to_the_last_are_reported(tmp_path: Path):
    done = run(tmp_path, limit=2777, freed=False)
    assert done.returncode == 0, done.stderr
    assert "Logging error" not in done.stderr
    assert "Traceback" not in done.stderr
    (words,) = [line for line in done.stderr.splitlines() if "samples.jsonl could not be written" in line]
    complete = (tmp_path / "samples.jsonl").read_bytes().count(b"\n")
    assert words.startswith(f"warning: {120 - complete} lines of ")
    assert "File too large" in words
    assert (tmp_path / "samples.jsonl").stat().st_size == 2777


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full")
def test_output_that_a_full_disk_refuses_is_nobodys_error():
    program = (
        "import sys; from apa_cli.commands.environment import command; "
        "sys.exit(command('x')(lambda argv: print('done') or 0)())"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED=""),
            check=False,
        )
    assert done.stderr == b""
    assert done.returncode == 0
