"""Pictures of several runs: what is drawn where, and that odd sets of runs can be drawn."""

from __future__ import annotations

from pathlib import Path

from run_folders import row, write_grid, write_run

from apa_cli.runs.figures import curve, frontier
from apa_cli.runs.folders import find_runs, read_run
from apa_cli.runs.settings import group

GRID = {(0.1, 0): (8, 3.0), (0.1, 1): (10, 3.4), (1.0, 0): (1, 1.0), (1.0, 1): (3, 2.0)}


def settings_in(folder: Path):
    return group([read_run(found) for found in find_runs([str(folder)])])


def test_the_line_goes_through_the_means_in_order_of_kl(tmp_path: Path):
    reward, evaluator = frontier(settings_in(write_grid(tmp_path / "g", GRID))).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in reward.lines}
    assert lines["APA"] == [[2.0, 1.5], [9.0, 3.2]]
    assert lines["before training"] == [[0.0, 0.0]]
    points = sorted(
        point for line in reward.lines if line.get_linestyle() == "None" for point in line.get_xydata().tolist()
    )
    assert points == [[0.0, 0.0], [1.0, 1.0], [3.0, 2.0], [8.0, 3.0], [10.0, 3.4]]
    assert {text.get_text() for text in reward.texts} == {"λ 0.1", "λ 1"}
    [band] = reward.collections
    low, high = band.get_datalim(reward.transData).get_points()
    assert (low.tolist(), high.tolist()) == ([2.0, 1.0], [9.0, 3.4])  # from the lowest seed to the highest
    lines = {line.get_label(): line.get_xydata().tolist() for line in evaluator.lines}
    assert lines["APA"] == [[2.0, 0.75], [9.0, 1.6]]


def test_curves_are_over_what_every_seed_has(tmp_path: Path):
    write_run(tmp_path / "a", [row(1, reward_mean=1.0), row(2, reward_mean=3.0), row(3, reward_mean=9.0)])
    write_run(tmp_path / "b", [row(1, reward_mean=2.0), row(2, reward_mean=7.0)], seed=1)
    [setting] = settings_in(tmp_path)
    assert curve(setting, "reward/mean") == ([1, 2], [1.5, 5.0], [1.0, 3.0], [2.0, 7.0])
    assert curve(setting, "kl/to_init") == ([], [], [], [])
