"""Models of the Hub: a pinned revision is the one that runs, and versions.json says which commits those were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import Finished, run_command
from safetensors.torch import load_file
from tiny_models import TEXTS

from apa_cli.config.schema import AdapterConfig
from apa_cli.models.adapter_loading import adapter_folder

OLD, NEW, REWARD = "a" * 40, "b" * 40, "c" * 40


def put_into_cache(cache: Path, name: str, folders: dict[str, Path], main: str) -> None:
    """As huggingface_hub lays a repository out: snapshots by commit, and what `main` is."""
    place = cache / f"models--{name.replace('/', '--')}"
    for commit, folder in folders.items():
        shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(main)


def start(folder: Path, *arguments: str) -> Finished:
    """apa-train in this folder, with the cache beside it in place of the Hub."""
    return run_command("apa-train", *arguments, cwd=folder, HF_HUB_CACHE=str(folder / "cache"))


SMALL = (
    *("config=own", "policy.path=somebody/policy", "reward.path=somebody/reward", "data.path=prompts.jsonl"),
    *("rollout.batch_size=4", "training.minibatch_size=4", "training.iterations=1", "evaluation.prompts=0"),
    *("generation.max_new_tokens=4", "tracking.wandb.mode=disabled", "output_dir=run", "optimizer.learning_rate=1e-9"),
)


@pytest.fixture
def place(tmp_path: Path, policy_dir, reward_dir) -> Path:
    put_into_cache(tmp_path / "cache", "somebody/policy", {OLD: policy_dir(seed=11), NEW: policy_dir(seed=12)}, NEW)
    put_into_cache(tmp_path / "cache", "somebody/reward", {REWARD: reward_dir}, REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS * 4))
    return tmp_path


def commits(place: Path) -> dict[str, str]:
    versions = json.loads((place / "run" / "versions.json").read_text())
    return {name.removesuffix("_commit"): value for name, value in versions.items() if name.endswith("_commit")}


def push(place: Path) -> None:
    (place / "cache" / "models--somebody--policy" / "refs" / "main").write_text(OLD)


def test_commits_are_recorded_and_a_push_is_noticed(place: Path):
    first = start(place, *SMALL)
    assert first.code == 0, first.errors
    recorded = {"policy": NEW, "value": NEW, "reference": NEW, "reward": REWARD}
    assert commits(place) == recorded
    ran, name = load_file(place / "run/final/model.safetensors"), "gpt_neox.embed_in.weight"
    original = load_file(place / f"cache/models--somebody--policy/snapshots/{NEW}/model.safetensors")
    assert (ran[name] - original[name]).abs().max() < 1e-6  # a step of 1e-9

    second = start(place, "resume=run", "training.iterations=2")
    assert second.code == 0, second.errors
    assert "versions differ from" not in second.errors
    assert commits(place) == recorded

    push(place)
    third = start(place, "resume=run", "training.iterations=3")
    assert third.code == 2
    assert f"changed under the same path since the run began: reference_commit {NEW} → {OLD}; " in third.errors


def test_each_model_has_a_revision_of_its_own_and_a_push_changes_no_pinned_run(place: Path):
    names = ("policy", "reference", "value")
    pinned = [f"{name}.revision={commit}" for name, commit in zip(names, (NEW, OLD, OLD), strict=True)]
    done = start(place, *SMALL, "reference.path=somebody/policy", "value.path=somebody/policy", *pinned)
    assert done.code == 0, done.errors
    assert commits(place) == {"policy": NEW, "reference": OLD, "value": OLD, "reward": REWARD}
    push(place)
    again = start(place, "resume=run", "training.iterations=2")
    assert again.code == 0, again.errors


def test_an_adapters_revision_is_asked_for(monkeypatch: pytest.MonkeyPatch, adapter_dir):
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, options["revision"]))
        return str(adapter_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert adapter_folder(AdapterConfig(path="somebody/adapter", revision="v2")) == str(adapter_dir)
    assert asked == [("somebody/adapter", "v2")]
