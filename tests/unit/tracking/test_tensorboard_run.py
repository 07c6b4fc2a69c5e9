import sys

import pytest
from tensorboard_file import expected, shown

from apa_cli.errors import UserError
from apa_cli.tracking.metrics import read_metrics
from apa_cli.tracking.tensorboard_run import TensorBoardRun
from apa_cli.tracking.tracker import Tracker


@pytest.fixture
def config(config):
    config.tracking.tensorboard = True
    return config


def track(config, folder, iterations, *, start=None, scale=1.0):
    with Tracker(config, folder, start_iteration=start).begin() as tracker:
        for iteration in iterations:
            numbers = {"reward/mean": iteration / 3 * scale, "kl/to_init": float("nan"), "memory/peak_bytes": 12345678}
            tracker.log(iteration, numbers)


def test_every_number_is_there(tmp_path, config):
    with Tracker(config, tmp_path).begin() as tracker:
        tracker.log_evaluation(0, {"eval/reward": 0.25}, [])
        tracker.log_evaluation(1, {"eval/reward": 0.5}, [])
        tracker.log(1, {"reward/mean": 1 / 3, "optim/grad_norm": float("inf")})
    assert shown(tmp_path) == expected(read_metrics(tmp_path))
    assert set(shown(tmp_path)[1]) == {"eval/reward", "reward/mean"}


@pytest.mark.parametrize("start", [0, 2, None])
def test_a_run_that_goes_on_shows_no_step_twice(tmp_path, config, start):
    track(config, tmp_path, range(5))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # killed inside a record
    track(config, tmp_path, range(0 if start is None else start + 1, 4), start=start, scale=2.0)
    assert shown(tmp_path) == expected(read_metrics(tmp_path))
    assert sorted(shown(tmp_path)) == [0, 1, 2, 3]


def test_a_run_that_begins_with_it_later_shows_what_was_before(tmp_path, config):
    config.tracking.tensorboard = False
    track(config, tmp_path, range(5))
    assert not (tmp_path / "tensorboard").exists()
    config.tracking.tensorboard = True
    track(config, tmp_path, range(3, 6), start=2)
    assert sorted(shown(tmp_path)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("broken", ["", "raise TypeError('Descriptors cannot be created directly.')"])
def test_no_tensorboard_is_said_at_once(tmp_path, monkeypatch, broken):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    if broken:
        (tmp_path / "tensorboard.py").write_text(broken)
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
    problem = "cannot be imported .Descriptors" if broken else "is not installed"
    with pytest.raises(UserError, match=f"tracking.tensorboard: tensorboard {problem}"):
        TensorBoardRun(tmp_path)
