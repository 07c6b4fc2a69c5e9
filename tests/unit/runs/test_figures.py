"""Pictures of several runs: what is drawn where, and that odd sets of runs can be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import row, write_grid, write_run

from apa_cli.runs.figures import curve, draw_all, frontier, iterations
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


def test_one_run_can_be_drawn(tmp_path: Path):
    write_run(tmp_path / "a", [row(0, eval_reward=0.0, eval_kl=0.0), row(1, eval_reward=1.0, eval_kl=2.0)])
    paths = draw_all(settings_in(tmp_path), tmp_path)
    assert [path.name for path in paths] == ["frontier.png", "iterations.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_nothing_measured_draws_nothing(tmp_path: Path):
    assert draw_all([], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_many_settings_keep_colours_apart(tmp_path: Path):
    grid = {(0.01 * i, 0): (10 - i / 10, i / 10) for i in range(1, 31)}
    settings = settings_in(write_grid(tmp_path / "g", grid))
    colours = {str(line.get_color()) for line in iterations(settings).axes[0].lines}
    assert len(colours) == 30


LONG = "/data/" + "a_very_long_name_of_a_model/" * 7
CROWD = [
    {"objective__kl_lambda": 0.1 * (i % 3 + 1), "optimizer__learning_rate": 1e-5 * (1 + i // 3)} for i in range(30)
]
TWO = [
    {"policy__path": f"{place}/policy", "reward__path": f"{place}/reward", "objective__kl_lambda": kl_lambda}
    for place in ("builtin:reviews", "/home/alice/sft")
    for kl_lambda in (0.1, 0.3)
]


def draw(folder: Path, configs: list[dict[str, object]], *, spread: float = 1.0):
    for i, config in enumerate(configs):
        rows = [row(0, eval_reward=0.0, eval_kl=0.0), row(1, eval_reward=3 + spread * i, eval_kl=5 + spread * (i % 5))]
        write_run(folder / f"{i}", [rows[0], rows[1] | row(1, reward_mean=1.0, kl_to_init=1.0)], **config)
    settings = settings_in(folder)
    return frontier(settings), iterations(settings)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("configs", "spread"),
    [
        ([{}], 1.0),
        (TWO, 1.0),
        (CROWD, 0.001),
        (CROWD, 1.0),
        ([{"policy__path": f"{LONG}{i}/final"} for i in range(3)], 1.0),
        ([{"policy__path": f"/m/{name}"} for name in ("a$b_c$%", "模型", "\\frac$", "модель^{x}")], 0.5),
        ([{"policy__path": f"{LONG}{i}/final"} for i in range(60)], 0.1),
    ],
)
def test_nothing_overprints_and_panels_keep_their_room(tmp_path: Path, configs, spread: float):
    for figure in draw(tmp_path, configs, spread=spread):
        figure.draw_without_rendering()
        [legend] = figure.legends
        below = legend.get_window_extent()
        assert figure.bbox.x0 <= below.x0 and below.x1 <= figure.bbox.x1
        names = [text.get_text() for text in legend.get_texts()]
        assert len(set(names)) == len(names)
        for axes in figure.axes:
            assert axes.bbox.height > 0.45 * figure.bbox.height
            assert axes.bbox.width > 0.75 * figure.bbox.width / len(figure.axes)
            assert axes.get_tightbbox().y0 >= below.y1
            boxes = [text.get_window_extent() for text in axes.texts if text.get_text() != "not measured"]
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_names_are_read_as_they_are_and_titles_are_true(tmp_path: Path):
    figure, _ = draw(tmp_path / "a", [{"policy__path": "/m/a$b_c$%"}, {"policy__path": "/m/模"}])
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [
        "APA, policy=a$b_c$%",
        "APA, policy=\\u6a21",
    ]
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())
    assert figure.axes[0].get_title("left") == "Reward, held-out prompts"
    write_run(tmp_path / "b" / "0", [row(1, reward_mean=1.0, kl_to_init=2.0)])
    assert frontier(settings_in(tmp_path / "b")).axes[0].get_title("left") == "Reward, last rollout"


def test_a_legend_says_how_many_it_leaves_out(tmp_path: Path):
    _, figure = draw(tmp_path, [{"policy__path": f"{LONG}{i}/final"} for i in range(60)])
    assert "more (see the table)" in figure.legends[0].get_texts()[-1].get_text()


def test_curves_are_over_what_every_seed_has(tmp_path: Path):
    write_run(tmp_path / "a", [row(1, reward_mean=1.0), row(2, reward_mean=3.0), row(3, reward_mean=9.0)])
    write_run(tmp_path / "b", [row(1, reward_mean=2.0), row(2, reward_mean=7.0)], seed=1)
    [setting] = settings_in(tmp_path)
    assert curve(setting, "reward/mean") == ([1, 2], [1.5, 5.0], [1.0, 3.0], [2.0, 7.0])
    assert curve(setting, "kl/to_init") == ([], [], [], [])


@pytest.mark.parametrize("objectives", [("apa", "ppo", "awr")])
def test_one_line_for_each_objective(tmp_path: Path, objectives: tuple[str, ...]):
    for objective in objectives:
        write_run(tmp_path / objective, [row(1, eval_reward=1.0, eval_kl=2.0)], objective__name=objective)
    labels = [line.get_label() for line in frontier(settings_in(tmp_path)).axes[0].lines]
    assert sorted(labels) == ["APA", "AWR", "PPO"]
