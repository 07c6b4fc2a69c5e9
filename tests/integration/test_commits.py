"""Models of the Hub: a pinned revision is the one that runs, and versions.json says which commits those were."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment
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


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """apa-train in this folder, with the cache beside it in place of the Hub."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "apa-train"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=300,
        env=environment(HF_HUB_CACHE=str(folder / "cache")),
    )


SMALL = (
    *("config=own", "policy.path=somebody/policy", "reward.path=somebody/reward", "data.path=prompts.jsonl"),
    *("rollout.batch_size=4", "training.minibatch_size=4", "training.iterations=1", "evaluation.prompts=0"),
    *("generation.max_new_tokens=4", "tracking.wandb.mode=disabled", "output_dir=run", "optimizer.learning_rate=1e-9"),
)


@pytest.mark.parametrize("pinned", [None, OLD])
def test_commits_are_recorded_and_stay_when_the_run_goes_on(tmp_path: Path, policy_dir, reward_dir, pinned):
    cache = tmp_path / "cache"
    policies = {OLD: policy_dir(seed=11), NEW: policy_dir(seed=12)}
    put_into_cache(cache, "somebody/policy", policies, NEW)
    put_into_cache(cache, "somebody/reward", {REWARD: reward_dir}, REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS * 4))

    first = start(tmp_path, *SMALL, *([f"policy.revision={pinned}"] if pinned else []))
    assert first.returncode == 0, first.stderr
    expected = {"policy_commit": pinned or NEW, "value_commit": pinned or NEW, "reference_commit": pinned or NEW}
    expected["reward_commit"] = REWARD
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert {name: value for name, value in versions.items() if name.endswith("_commit")} == expected
    ran, name = load_file(tmp_path / "run/final/model.safetensors"), "gpt_neox.embed_in.weight"
    original = load_file(policies[pinned or NEW] / "model.safetensors")
    assert (ran[name] - original[name]).abs().max() < 1e-6  # a step of 1e-9 from the revision that was asked for

    second = start(tmp_path, "resume=run", "training.iterations=2")
    assert second.returncode == 0, second.stderr
    assert "not the versions" not in second.stderr
    assert json.loads((tmp_path / "run" / "versions.json").read_text()) == versions

    (cache / "models--somebody--policy" / "refs" / "main").write_text(OLD)  # somebody pushed
    third = start(tmp_path, "resume=run", "training.iterations=3")
    if pinned:
        assert third.returncode == 0, third.stderr
    else:
        assert third.returncode == 2
        assert f"changed under the same path since the run began: reference_commit {NEW} → {OLD}; " in third.stderr


def test_each_model_has_a_revision_of_its_own(tmp_path: Path, policy_dir, reward_dir):
    cache = tmp_path / "cache"
    put_into_cache(cache, "somebody/policy", {OLD: policy_dir(seed=11), NEW: policy_dir(seed=12)}, NEW)
    put_into_cache(cache, "somebody/reward", {REWARD: reward_dir}, REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS * 4))
    others = ["reference.path=somebody/policy", "value.path=somebody/policy"]
    pinned = [f"reference.revision={OLD}", f"value.revision={OLD}"]
    done = start(tmp_path, *SMALL, *others, *pinned)
    assert done.returncode == 0, done.stderr
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    expected = {"policy_commit": NEW, "reference_commit": OLD, "value_commit": OLD, "reward_commit": REWARD}
    assert {name: value for name, value in versions.items() if name.endswith("_commit")} == expected


def test_an_adapters_revision_is_asked_for(monkeypatch: pytest.MonkeyPatch, adapter_dir):
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, options["revision"]))
        return str(adapter_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert adapter_folder(AdapterConfig(path="somebody/adapter", revision="v2")) == str(adapter_dir)
    assert asked == [("somebody/adapter", "v2")]
