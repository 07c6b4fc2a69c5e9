"""Pictures of several runs: what is drawn where, and that odd sets of runs can be drawn."""

from __future__ import annotations

from pathlib import Path

from run_folders import row, write_run

from apa_cli.runs.figures import curve
from apa_cli.runs.folders import find_runs, read_run
from apa_cli.runs.settings import group


def settings_in(folder: Path):
    return group([read_run(found) for found in find_runs([str(folder)])])


def test_curves_are_over_what_every_seed_has(tmp_path: Path):
    write_run(tmp_path / "a", [row(1, reward_mean=1.0), row(2, reward_mean=3.0), row(3, reward_mean=9.0)])
    write_run(tmp_path / "b", [row(1, reward_mean=2.0), row(2, reward_mean=7.0)], seed=1)
    [setting] = settings_in(tmp_path)
    assert curve(setting, "reward/mean") == ([1, 2], [1.5, 5.0], [1.0, 3.0], [2.0, 7.0])
    assert curve(setting, "kl/to_init") == ([], [], [], [])
