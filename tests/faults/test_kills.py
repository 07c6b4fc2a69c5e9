"""SIGKILL at random moments, inside saving too: the resumed run is the uninterrupted one."""

from __future__ import annotations

import shutil
import time
from random import Random

import pytest
from runs import SMALL, VARIANTS, Kills, assert_same_run, kill_until_done, latest

KILLS = 10


def test_kills_change_nothing(server, uninterrupted, tmp_path):
    draw, kills, compared = Random(20), Kills(), 0
    started = time.perf_counter()
    uninterrupted("apa")
    seconds = time.perf_counter() - started
    while kills.total < KILLS:
        variant = list(VARIANTS)[compared % len(VARIANTS)]
        folder = tmp_path / f"run{compared}"
        kill_until_done(
            server, folder, (*SMALL, *VARIANTS[variant]), draw, kills, limit=KILLS, seconds=min(seconds, 6.0)
        )
        assert_same_run(folder, uninterrupted(variant))
        shutil.rmtree(folder)
        compared += 1
    assert kills.at_fault_points > 2
    assert kills.at_random_moments > 2


@pytest.mark.parametrize("point", [3, 21, 39])
def test_death_at_a_write_or_a_rename(server, uninterrupted, tmp_path, point):
    """Settings, the first and the second checkpoint: three of their fault points."""
    folder = tmp_path / "run"
    assert server.run(folder, *SMALL, die_at=point) == -9
    if (folder / "checkpoints" / "latest").exists():  # never at a partial one
        assert (latest(folder) / "manifest.json").is_file()
    assert not (folder / "summary.json").exists()
    assert server.run(folder, *SMALL, "resume=auto") == 0, server.output.read_text()[-2000:]
    assert_same_run(folder, uninterrupted("apa"))
    assert [path.name for path in folder.rglob(".*") if path.name not in (".lock", ".apa-cli")] == []
