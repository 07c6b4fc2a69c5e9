"""Training without a critic through the real command: nothing of a critic is measured, saved or missed."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Finished, apa_train

CRITIC = {"objective/value_loss", "optim/value_grad_norm", "value/explained_variance"}
SMALL = (
    "generation.max_new_tokens=8",
    "rollout.batch_size=16",
    "evaluation.prompts=4",
    "training.epochs_per_rollout=1",
)


def train(folder: Path, *overrides: str) -> Finished:
    words = ("config=reviews_apa_group", *SMALL, "tracking.wandb.mode=disabled", *overrides)
    done = apa_train(folder, *words, pictures=True)
    assert done.code == 0, done.errors
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    words = ("training.iterations=3", "checkpoint.every=2", "objective=ppo")
    return train(tmp_path_factory.mktemp("group") / "run", *words)


def test_nothing_of_a_critic(run: Finished):
    assert [line["iteration"] for line in run.metrics] == [1, 2, 3]
    assert all(not CRITIC & set(line) for line in run.metrics)
    checkpoint = run.folder / "checkpoints/iter_000003"
    assert sorted(path.name for path in checkpoint.iterdir()) == ["manifest.json", "policy", "trainer_state"]
    assert (run.folder / "plots/losses.png").is_file()
