"""The plan that apa-train prints, alone and at the start of a run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from command import apa_train
from transformers import LlamaConfig

from apa_cli.assets.resolve import resolve_path


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """The configuration of Llama 2 70B: in float32, weights and copy, gradients and states are beyond 1 TiB."""
    config = LlamaConfig(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=32000,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path / "huge")
    return tmp_path / "huge"


def test_plan_only_reads_no_weights_and_leaves_nothing(tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(resolve_path("builtin:reviews/policy"), model, ignore=shutil.ignore_patterns("*.safetensors"))
    run = apa_train(tmp_path / "run", "plan_only=true", f"policy.path={model}")
    assert (run.code, run.errors) == (0, "")
    names = [line.split()[0] for line in run.output.splitlines()]
    assert names[:6] == ["role", "policy", "reference", "value", "reward", "evaluator"]
    assert names[6:] == ["data", "policy", "reward", "evaluator", "generation", "update", "memory"]
    assert run.output.splitlines()[8].endswith(" <eos>")  # behind the response
    assert run.output.splitlines()[1].split()[1:5] == ["473,088", "473,088", "1.8", "MiB"]
    assert re.search(r"at most about \d{3} MiB, \d{3} MiB of it Python and libraries", run.output)
    assert "64 × up to 18 + 32 tokens" in run.output  # the longest prompts that the data hold
    assert not run.folder.exists()


@pytest.mark.parametrize("words", [("tracking.wandb.mode=disabled",), ("plan_only=true",)])
def test_what_cannot_fit_is_refused_before_weights_are_asked_for(tmp_path: Path, huge: Path, words: tuple[str, ...]):
    run = apa_train(tmp_path / "run", f"policy.path={huge}", *words)
    assert run.code == 2
    assert run.errors.count("\n") == 1
    assert "the largest part is the policy with 1," in run.errors  # 69 billion × 16 bytes
    assert "add policy=lora" in run.errors
    assert "68,976,648,192" in run.output
    assert not run.folder.exists()


def test_a_sweep_has_no_plan(tmp_path: Path):
    run = apa_train(tmp_path / "sweep", "plan_only=true", "seed=0,1", "-m")
    assert (run.code, run.folder.exists()) == (2, False)
    assert "plan_only: plans one run" in run.errors
