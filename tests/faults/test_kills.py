"""SIGKILL at random moments, inside saving too: the resumed run is the uninterrupted one."""

from __future__ import annotations

import random
import shutil
import time

import pytest
from runs import SMALL, VARIANTS, assert_same_run

KILLS = 20
FAULT_POINTS = 120  # about as many as a whole run has


def test_twenty_kills_change_nothing(server, uninterrupted, tmp_path):
    draw = random.Random(20)
    names = list(VARIANTS)
    for variant in names:
        uninterrupted(variant)
    started = time.perf_counter()
    assert server.run(tmp_path / "timed", *SMALL) == 0
    whole = time.perf_counter() - started
    kills = compared = 0
    while kills < KILLS:
        variant = names[compared % len(names)]
        folder = tmp_path / f"run{compared}"
        code = None
        while code != 0:
            overrides = (*SMALL, *VARIANTS[variant], "resume=auto")
            if kills >= KILLS:
                code = server.run(folder, *overrides)
            elif draw.random() < 0.5:
                code = server.run(folder, *overrides, die_at=draw.randint(1, FAULT_POINTS))
            else:
                code = server.run(folder, *overrides, kill_after=draw.uniform(0.0, whole))
            assert code in (0, -9), server.output.read_text()[-2000:]
            kills += code == -9
        assert_same_run(folder, uninterrupted(variant))
        shutil.rmtree(folder)
        compared += 1


@pytest.mark.parametrize("point", range(3, 40, 5))
def test_death_at_a_write_or_a_rename(server, uninterrupted, tmp_path, point):
    """Settings, the first and the second checkpoint: every fifth of their fault points."""
    folder = tmp_path / "run"
    assert server.run(folder, *SMALL, die_at=point) == -9
    latest = folder / "checkpoints" / "latest"
    if latest.exists():  # never at a partial one
        assert (latest / "manifest.json").is_file()
    assert not (folder / "summary.json").exists()
    assert server.run(folder, *SMALL, "resume=auto") == 0, server.output.read_text()[-2000:]
    assert_same_run(folder, uninterrupted("apa"))
    assert [path.name for path in folder.rglob(".*") if path.name != ".lock"] == []
