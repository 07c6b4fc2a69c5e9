"""A configuration to track, and no account, key or terminal of whoever runs the tests."""

import pytest

from apa_cli.config.schema import TrainConfig


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def config(tmp_path):
    config = TrainConfig(output_dir=str(tmp_path / "run"))
    config.policy.path, config.data.path, config.reward.path = "policy-folder", "prompts.jsonl", "reward-folder"
    config.training.iterations = 3
    config.tracking.console = "plain"
    config.tracking.wandb.mode = "disabled"
    return config
