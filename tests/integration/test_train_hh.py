"""Training on real dialogues in the HH format through the real command: LoRA and full, model and function rewards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, Finished, apa_train, environment
from hh_data import hh_file
from wandb_file import read_history

from apa_cli.tracking.metrics import CONTRACT_METRICS

REWARD_FUNCTION = '''
def brief(prompts, responses, chosen, **others):
    """Short answers, a little more so where the chosen dialogue is short; `chosen` is a column of the data."""
    assert len(prompts) == len(responses) == len(chosen) and set(others) == {"rejected"}
    pairs = zip(prompts, chosen)
    assert all(dialogue.startswith(prompt) for prompt, dialogue in pairs if prompt.startswith("\\n\\nHuman:"))
    return [-len(response) / 100 - len(dialogue) / 10_000 for response, dialogue in zip(responses, chosen)]
'''


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/ and reward/ with a BPE tokenizer of up to 8,192 tokens on the dialogues, as the README makes them."""
    folder = tmp_path_factory.mktemp("small")
    command = [sys.executable, str(ROOT / "scripts" / "make_small_models.py"), "--data", str(hh_file())]
    sizes = ["--hidden", "32", "--layers", "2", "--sft-steps", "5", "--reward-steps", "5"]
    subprocess.run([*command, "--output", str(folder), *sizes], check=True, capture_output=True, env=environment())
    return folder


@pytest.fixture(scope="module", params=["full-model", "lora-function"])
def run(request: pytest.FixtureRequest, small_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    weights, reward = request.param.split("-")
    work = tmp_path_factory.mktemp(request.param)
    (work / "brief.py").write_text(REWARD_FUNCTION, encoding="utf-8")
    (work / "mine.yaml").write_text(
        f"""
defaults: [own]
policy: {{path: {small_models / "policy"}}}
data: {{path: {hh_file()}, format: hh, max_prompt_tokens: 32}}
generation: {{max_new_tokens: 16, stop: ["Human:"]}}
rollout: {{batch_size: 8}}
training: {{iterations: 3, minibatch_size: 4, microbatch_tokens: 400}}
optimizer: {{learning_rate: 1e-3}}
evaluation: {{prompts: 8, every: 2}}
checkpoint: {{every: 2}}
""",
        encoding="utf-8",
    )
    overrides = ["config=mine.yaml"]
    overrides += ["policy.adapter.r=4", "value=shared"] if weights == "lora" else []
    if reward == "model":
        overrides += [f"reward.path={small_models / 'reward'}"]
    else:
        overrides += ["reward=function", "reward.function=brief.py:brief"]
    return apa_train(work / "run", *overrides, cwd=work, pictures=True)


def test_it_ends_well(run: Finished):
    assert run.code == 0, run.errors
    assert run.errors == ""
    assert "cut on the left" in run.output
    assert f"Policy    {run.folder / 'final'}" in run.output


def test_every_metric_of_every_iteration_is_there(run: Finished):
    assert [line["iteration"] for line in run.metrics] == [1, 2, 3]
    for line in run.metrics:
        missing = set(CONTRACT_METRICS) - set(line) - {"objective/target_residual"}
        assert not missing
        assert all(line[name] is not None for name in CONTRACT_METRICS)
    assert "eval/reward" in run.metrics[1]
    assert "eval/reward" not in run.metrics[0]


def test_kl_starts_at_zero_and_the_policy_moves(run: Finished):
    assert abs(run.metrics[0]["kl/to_init"]) < 1e-3
    assert abs(run.metrics[-1]["kl/to_init"]) > 1e-3


def test_wandb_has_every_iteration(run: Finished):
    history = {row["iteration"]: row for row in read_history(run.folder) if "kl/to_init" in row}
    assert sorted(history) == [1, 2, 3]
    for line in run.metrics:
        for name in ("kl/to_init", "reward/mean", "policy/entropy"):
            assert history[line["iteration"]][name] == pytest.approx(line[name], abs=1e-9)


def test_the_folder_is_complete(run: Finished):
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    expected = {
        "config.yaml", "overrides.yaml", "versions.json", "run.log", "metrics.jsonl", "samples.jsonl", "report.md",
        "checkpoints/latest", "checkpoints/iter_000002/manifest.json", "checkpoints/iter_000003/manifest.json",
        "checkpoints/iter_000003/value/value_head.safetensors", "final/README.md", "final/tokenizer.json",
        "plots/reward.png", "plots/kl.png", "plots/entropy.png",
    }  # fmt: skip
    assert expected <= names
    state = json.loads((run.folder / "checkpoints/iter_000003/trainer_state/state.json").read_text(encoding="utf-8"))
    assert state["iteration"] == 3
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    assert not pickles
    for file in (
        file for name in ("checkpoints", "final") for file in (run.folder / name).rglob("*") if file.is_file()
    ):
        assert file.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"), file


def test_samples_are_dialogues(run: Finished):
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [sample for sample in samples if sample["source"] == "training"]
    assert len(trained) == 3 * 4
    assert all(sample["prompt"].endswith("Assistant:") for sample in trained)
    assert all("Human:" not in sample["response"] for sample in trained)
