"""Grouping by setting and statistics over seeds, with figures worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from run_folders import row, write_grid, write_run

from apa_cli.runs.figures import curve
from apa_cli.runs.folders import find_runs, read_run
from apa_cli.runs.settings import estimate, group, student_t


def test_mean_and_interval_by_hand():
    # 1, 2, 6: mean 3, deviations −2, −1, 3, variance 14 / 2 = 7; half = 4.303 · √7 / √3
    found = estimate([1.0, None, 2.0, 6.0])
    assert found is not None
    assert (found.mean, found.count, found.lowest, found.highest) == (3.0, 3, 1.0, 6.0)
    assert found.half == pytest.approx(4.303 * math.sqrt(7 / 3))


def test_one_value_has_no_interval():
    assert estimate([2.5]) is not None
    assert estimate([2.5]).half is None
    assert estimate([None]) is None


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.7062), (2, 4.30265), (9, 2.26216), (40, 2.02108), (120, 1.97993)])
def test_student_t_as_in_published_tables(degrees: int, t: float):
    assert student_t(degrees) == pytest.approx(t, abs=0.002)


def runs_in(folder: Path):
    return [read_run(found) for found in find_runs([str(folder)])]


def test_seeds_are_one_setting_and_settings_are_in_order(tmp_path: Path):
    grid = {(1.0, 0): (1, 1), (0.1, 0): (4, 2), (0.1, 1): (6, 4), (0.3, 0): (2, 2)}
    settings = group(runs_in(write_grid(tmp_path / "g", grid)))
    assert [(setting.label, len(setting.runs)) for setting in settings] == [
        ("APA, λ 0.1", 2),
        ("APA, λ 0.3", 1),
        ("APA, λ 1", 1),
    ]
    kl = settings[0].final("eval/kl")
    assert (kl.mean, kl.half) == (5.0, pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2)))


def test_what_else_differs_makes_another_line(tmp_path: Path):
    rows = [row(1, eval_kl=1.0, eval_reward=1.0)]
    write_run(tmp_path / "a", rows, optimizer__learning_rate=1e-5)
    write_run(tmp_path / "b", rows, optimizer__learning_rate=1e-4, tracking__console="quiet")
    assert [setting.line for setting in group(runs_in(tmp_path))] == [
        "APA, learning_rate=1e-05",
        "APA, learning_rate=0.0001",
    ]


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"policy__path": ["/a/sft/policy", "/b/rm/policy"]}, ["APA, policy=sft/policy", "APA, policy=rm/policy"]),
        ({"policy__path": ["policy", "x/policy"]}, ["APA, policy=policy", "APA, policy=x/policy"]),
        (
            {"reward__path": ["/a", "/b"], "evaluation__reward__path": ["/c", "/d"]},
            ["APA, reward.path=a, evaluation.reward.path=c", "APA, reward.path=b, evaluation.reward.path=d"],
        ),
        (
            {"reward__scale": [1, 2], "evaluation__reward__scale": [3, 4]},
            ["APA, reward.scale=1, evaluation.reward.scale=3", "APA, reward.scale=2, evaluation.reward.scale=4"],
        ),
    ],
)
def test_keys_go_by_name_and_paths_by_what_tells_them_apart(tmp_path: Path, values, lines):
    for i in range(2):
        write_run(tmp_path / f"{i}", [row(1, eval_kl=1.0)], **{key: pair[i] for key, pair in values.items()})
    assert [setting.line for setting in group(runs_in(tmp_path))] == lines


@pytest.mark.parametrize(
    "values", [(0.12345, 0.123456), ("a  b", "a b"), ("y" * 300 + "a" * 20, "z" * 9 + "y" * 291 + "a" * 20)]
)
def test_values_that_read_alike_are_no_one_setting(tmp_path: Path, values):
    for i, value in enumerate(values):
        write_run(tmp_path / f"{i}", [row(1, eval_kl=1.0)], generation__note=value)
    assert len({setting.label for setting in group(runs_in(tmp_path))}) == 2


def test_runs_of_an_older_version_are_no_line_of_their_own(tmp_path: Path):
    rows = [row(1, eval_kl=1.0, eval_reward=1.0)]
    write_run(tmp_path / "old", rows)
    write_run(tmp_path / "new", rows, seed=1, checkpoint__best_metric="eval/reward")
    assert [(setting.label, len(setting.runs)) for setting in group(runs_in(tmp_path))] == [("APA, λ 0.3", 2)]


def test_many_differences_stay_apart(tmp_path: Path):
    rows = [row(1, eval_kl=1.0, eval_reward=1.0)]
    for i in range(2):
        write_run(tmp_path / f"{i}", rows, a=i, b=i, c=i, d=i)
        write_run(tmp_path / f"x{i}", rows, a=0, b=0, c=0, d=5, e="y" * 300)
    assert len({setting.line for setting in group(runs_in(tmp_path))}) == 3


def test_a_knob_that_the_objective_does_not_read_is_no_difference(tmp_path: Path):
    rows = [row(1, eval_kl=1.0, eval_reward=1.0)]
    for seed, kl_lambda in ((0, 0.1), (1, 0.3)):
        write_run(tmp_path / f"p{seed}", rows, seed=seed, objective__name="ppo", objective__kl_lambda=kl_lambda)
        write_run(tmp_path / f"a{seed}", rows, seed=seed, objective__kl_coef=kl_lambda)
    assert [(setting.label, len(setting.runs)) for setting in group(runs_in(tmp_path))] == [
        ("APA, λ 0.3", 2),
        ("PPO, β 0.05", 2),
    ]


@pytest.mark.parametrize(("objective", "knob"), [("apa", "λ 0.3"), ("awr", "λ 0.3"), ("ppo", "β 0.05")])
def test_a_steered_run_is_known_by_its_target(tmp_path: Path, objective: str, knob: str):
    rows = [row(1, eval_kl=1.0, eval_reward=1.0)]
    for seed in (0, 1):
        for target in (2.0, 10.0):
            name = tmp_path / f"{seed}-{target}"
            write_run(name, rows, seed=seed, objective__name=objective, objective__kl_target=target)
        write_run(tmp_path / f"{seed}", rows, seed=seed, objective__name=objective, objective__kl_target=None)
    assert [(setting.label, len(setting.runs)) for setting in group(runs_in(tmp_path))] == [
        (f"{objective.upper()}, {knob}", 2),
        (f"{objective.upper()}, KL target 2", 2),
        (f"{objective.upper()}, KL target 10", 2),
    ]


def test_steering_from_different_values_makes_different_lines(tmp_path: Path):
    rows = [row(1, eval_kl=1.0, eval_reward=1.0)]
    for first in (0.1, 1.0):
        write_run(tmp_path / f"s{first}", rows, objective__kl_target=5.0, objective__kl_lambda=first)
        write_run(tmp_path / f"f{first}", rows, objective__kl_target=None, objective__kl_lambda=first)
    assert [setting.label for setting in group(runs_in(tmp_path))] == [
        "APA, λ 0.1",
        "APA, λ 1",
        "APA, from λ 0.1, KL target 5",
        "APA, from λ 1, KL target 5",
    ]


def test_unfinished_runs_count_only_where_none_is_finished(tmp_path: Path):
    write_run(tmp_path / "a", [row(1, eval_kl=1.0)])
    write_run(tmp_path / "b", [row(1, eval_kl=9.0)], seed=1, finished=False)
    [setting] = group(runs_in(tmp_path))
    assert setting.final("eval/kl").mean == 1.0
    (tmp_path / "a" / "summary.json").unlink()
    [setting] = group(runs_in(tmp_path))
    assert setting.final("eval/kl").mean == 5.0


def test_curves_are_over_what_every_seed_has(tmp_path: Path):
    write_run(tmp_path / "a", [row(1, reward_mean=1.0), row(2, reward_mean=3.0), row(3, reward_mean=9.0)])
    write_run(tmp_path / "b", [row(1, reward_mean=2.0), row(2, reward_mean=7.0)], seed=1)
    [setting] = group(runs_in(tmp_path))
    assert curve(setting, "reward/mean") == ([1, 2], [1.5, 5.0], [1.0, 3.0], [2.0, 7.0])
    assert curve(setting, "kl/to_init") == ([], [], [], [])
