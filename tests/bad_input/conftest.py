"""The whole parts that rows spoil, and a folder to stand in for each row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
from bad_input.harness import Parts
from hydra.types import RunMode

from apa_cli.commands.train import main

# A small run of the user's own: rows change one thing of it.
BASE = """\
defaults: [own]
policy.path: {policy}
reward.path: {reward}
data.path: prompts.jsonl
evaluation.prompts: 0
training: {{iterations: 2, minibatch_size: 2}}
rollout.batch_size: 2
generation.max_new_tokens: 4
checkpoint: {{every: 1, keep: 0}}
tracking: {{console: quiet, wandb.mode: disabled}}
device: cpu
output_dir: run
"""
PROMPTS = ["the quick brown fox", "Human: hello there.", "jumps over", "the lazy dog", "good day to you!"]


def write_base(folder: Path, policy: Path, reward: Path) -> None:
    (folder / "base.yaml").write_text(BASE.format(policy=policy, reward=reward), encoding="utf-8")
    lines = [json.dumps({"prompt": prompt}) for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")


def train(folder: Path, *overrides: str) -> Path:
    """A finished run, its paths absolute, so that it can be copied elsewhere."""
    data = f"data.path={folder.parent}/prompts.jsonl"
    assert main([f"config={folder.parent}/base.yaml", data, f"output_dir={folder}", *overrides]) == 0
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    home = tmp_path_factory.mktemp("parts")
    tokenizer = tiny_models.make_tokenizer()
    policy = tiny_models.save_policy(home / "policy", tokenizer)
    reward = tiny_models.save_reward(home / "reward", tokenizer)
    write_base(home, policy, reward)
    return Parts(
        policy=policy,
        reward=reward,
        adapter=tiny_models.save_adapter(home / "adapter", policy),
        other=tiny_models.save_policy(home / "other", tiny_models.make_tokenizer(vocabulary=280), hidden=24),
        run=train(home / "run"),
        lora_run=train(home / "lora_run", "policy.adapter.r=2"),
    )


@pytest.fixture
def folder(tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user stands: a configuration and prompts that work."""
    import huggingface_hub.constants

    write_base(tmp_path, parts.policy, parts.reward)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    # Hydra composes the configuration once more to learn what -m says already; the real script does too
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: RunMode.RUN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable is read at import
    return tmp_path
