import json
import math

import pytest

from apa_cli.tracking.plots import draw_run

NAMES = ["overview.png", "reward.png", "kl.png", "entropy.png", "losses.png"]
ONE = {"reward/mean": 0.5, "reward/std": 0.1, "kl/to_init": 0.2, "kl/to_init_k3": 0.3, "policy/entropy": 2.0}
EVALUATION = {
    "eval/reward": 0.4,
    "eval/evaluator": 0.1,
    "eval/kl": 0.0,
    "eval/entropy": 2.1,
    "eval/unique_fraction": 1.0,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        [{"iteration": 1, **ONE}],
        [{"iteration": 0, **EVALUATION}],
        [{"iteration": 1}],
        [
            {"iteration": 0, **EVALUATION},
            {"iteration": 1, **ONE, "objective/value_loss": 0.5, "value/explained_variance": -1e9},
            {"iteration": 2, "reward/mean": None, "reward/std": 0.1, "kl/to_init": None},
            {"iteration": 3, **ONE, **EVALUATION, "objective/policy_loss": math.nan},
        ],
    ],
    ids=["one iteration", "evaluation only", "nothing measured", "gaps"],
)
def test_pictures_are_drawn_from_whatever_there_is(tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = draw_run(tmp_path)
    assert [path.name for path in paths] == NAMES
    assert all(path.parent == tmp_path / "plots" and path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_no_metrics_no_pictures(tmp_path):
    assert draw_run(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
