"""Training without a critic through the real command: nothing of a critic is measured, saved or missed."""

from __future__ import annotations

from pathlib import Path

from command import apa_train

CRITIC = {"objective/value_loss", "optim/value_grad_norm", "value/explained_variance"}
SMALL = ("generation.max_new_tokens=8", "rollout.batch_size=16", "evaluation.prompts=4", "tracking.wandb.mode=disabled")


def test_nothing_of_a_critic(tmp_path: Path):
    words = ("training.iterations=2", "training.epochs_per_rollout=1", "objective=ppo")
    run = apa_train(tmp_path / "run", "config=reviews_apa_group", *SMALL, *words, pictures=True)
    assert run.code == 0, run.errors
    assert [line["iteration"] for line in run.metrics] == [1, 2]
    assert all(not CRITIC & set(line) for line in run.metrics)
    checkpoint = run.folder / "checkpoints/iter_000002"
    assert sorted(path.name for path in checkpoint.iterdir()) == ["manifest.json", "policy", "trainer_state"]
    assert (run.folder / "plots/losses.png").is_file()
