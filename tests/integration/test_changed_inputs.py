"""What lies under the same path and is no longer the same thing is named when a run goes on, and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

from apa_cli.commands.train import main

KEYS = """\
defaults: [own]
policy: {path: policy, adapter.path: adapter}
reference.path: reference
value.path: critic
reward:
  components:
    model: {path: reward}
    tuned: {path: reward_adapter}
    own: {kind: function, function: "mine.py:length", weight: 0.1}
evaluation: {prompts: 2, resamples: 10, reward: {kind: function, function: "judge/judge.py:score"}}
data: {path: rows.jsonl, eval_path: held_out.jsonl}
training: {iterations: 1, minibatch_size: 2}
rollout.batch_size: 2
generation.max_new_tokens: 4
tracking: {console: quiet, wandb.mode: disabled}
device: cpu
output_dir: run
"""
ROWS = [
    {"prompt": f"the {word}", "label": number, "id": "x"} for number, word in enumerate(["fox", "dog", "day", "lazy"])
]
MINE = """
import re

def length(prompts, responses, label):
    from helper import scaled
    return [scaled(len(r)) + n for r, n in zip(responses, label)]
"""
JUDGE = (
    "from parts.inner import one\n\ndef score(prompts, responses):\n    return [one() + len(r) for r in responses]\n"
)
SEVERAL = ["policy.path=policy (model.safetensors)", "data.eval_path=held_out.jsonl (held-out column label)"]

Change = Callable[[Path], object]


def write(home: Path, name: str, text: str) -> None:
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    (home / name).write_text(text, encoding="utf-8")


def save_reward_adapter(folder: Path, base: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, task_type=TaskType.SEQ_CLS)).save_pretrained(folder)


def jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, plain_tokenizer) -> Path:
    """A folder that a user works in, with a run of one iteration in it."""
    home = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("policy", "reference")):
        tiny_models.save_policy(home / name, plain_tokenizer, seed=seed)
    for seed, name in enumerate(("reward", "critic", "base")):
        tiny_models.save_reward(home / name, plain_tokenizer, seed=seed)
    write(home, "base.yaml", KEYS)
    write(home, "rows.jsonl", jsonl(ROWS))
    write(home, "held_out.jsonl", jsonl([{**row, "prompt": f"{row['prompt']} you"} for row in ROWS[:3]]))
    write(home, "mine.py", MINE)
    write(home, "helper.py", "def scaled(x):\n    return x * 2.0\n")
    write(home, "judge/judge.py", JUDGE)
    write(home, "judge/parts/inner.py", "from .deep import ONE\n\ndef one():\n    return ONE\n")
    write(home, "judge/parts/deep.py", "ONE = 1.0\n")
    write(home, "unused.py", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)  # adapters name their bases as the user would
        tiny_models.save_adapter(home / "adapter", Path("policy"))
        save_reward_adapter(home / "reward_adapter", "base")
        assert main(["config=base.yaml"]) == 0
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = shutil.copytree(finished, tmp_path / "home", symlinks=True)
    monkeypatch.chdir(home)
    return home


def flip(name: str) -> Change:
    """A bit of the last weight: the same names, shapes and size."""

    def change(home: Path) -> None:
        content = bytearray((home / name).read_bytes())
        content[-4] ^= 1
        (home / name).write_bytes(content)

    return change


def replace(name: str, old: str, new: str) -> Change:
    def change(home: Path) -> None:
        text = (home / name).read_text(encoding="utf-8")
        assert old in text
        (home / name).write_text(text.replace(old, new), encoding="utf-8")

    return change


relabelled = replace("held_out.jsonl", '"label": ', '"label": 1')
OWN, JUDGED = "reward.components.own.function=mine.py:length", "evaluation.reward.function=judge/judge.py:score"
TUNED = "reward.components.tuned.path=reward_adapter"
spaces = ("{", "{ ")
CHANGED: dict[str, tuple[str, Change]] = {
    "policy": (SEVERAL[0], flip("policy/model.safetensors")),
    "tokenizer": ("policy.path=policy (tokenizer_config.json)", replace("policy/tokenizer_config.json", *spaces)),
    "adapter": ("policy.adapter.path=adapter (adapter_model.safetensors)", flip("adapter/adapter_model.safetensors")),
    "reference": ("reference.path=reference (model.safetensors)", flip("reference/model.safetensors")),
    "configuration": ("reference.path=reference (config.json)", replace("reference/config.json", *spaces)),
    "critic": ("value.path=critic (model.safetensors)", flip("critic/model.safetensors")),
    "reward": ("reward.components.model.path=reward (model.safetensors)", flip("reward/model.safetensors")),
    "reward adapter": (f"{TUNED} (adapter_model.safetensors)", flip("reward_adapter/adapter_model.safetensors")),
    "base of a reward adapter": (f"{TUNED} (base/model.safetensors)", flip("base/model.safetensors")),
    "reward function": (f"{OWN} (mine.py)", replace("mine.py", "+ n", "- n")),
    "helper that it imports late": (f"{OWN} (helper.py)", replace("helper.py", "2.0", "3.0")),
    "package beside the evaluator": (f"{JUDGED} (parts/deep.py)", replace("judge/parts/deep.py", "1.0", "2.0")),
    "column": ("data.path=rows.jsonl (column label)", replace("rows.jsonl", '"label": 2', '"label": 7')),
    "column that is gone": ("data.path=rows.jsonl (column id)", replace("rows.jsonl", ', "id": "x"', "")),
    "held-out prompt": ("data.eval_path=held_out.jsonl (held-out prompts)", replace("held_out.jsonl", "you", "to you")),
    "several": (", ".join(SEVERAL), lambda home: [flip("policy/model.safetensors")(home), relabelled(home)]),
}  # fmt: skip


def contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "run.log"}


IN_PLACE, BRANCH = ("resume=run",), ("resume=run/checkpoints/iter_000001", "output_dir=branch")


@pytest.mark.parametrize(
    ("name", "words"), [*((name, IN_PLACE) for name in CHANGED), ("policy", BRANCH), ("column", BRANCH)]
)
def test_is_named_and_refused_before_anything_is_written(home: Path, name: str, words: tuple[str, ...], capsys):
    line, change = CHANGED[name]
    change(home)
    before = contents(home / "run")
    assert main([*words, "training.iterations=2"]) == 2
    assert capsys.readouterr().err == (
        f"apa-train: error: resume: changed under the same path since the run began: {line}; "
        "put it back, or add resume_allow_changes=true to accept the change\n"
    )
    assert contents(home / "run") == before
    assert not (home / "branch").exists()


def test_may_be_allowed_and_is_what_the_run_goes_on_with(home: Path, capsys):
    line, change = CHANGED["several"]
    change(home)
    assert main(["resume=run", "training.iterations=2", "resume_allow_changes=true"]) == 0
    line = f"changed under the same path since the run began: {line}"
    assert line in capsys.readouterr().err
    assert line in (home / "run" / "run.log").read_text(encoding="utf-8")
    assert main(["resume=run", "training.iterations=3"]) == 0


def no_digests(home: Path) -> None:
    """As a run of an older version left it."""
    file = home / "run" / "versions.json"
    versions = json.loads(file.read_text(encoding="utf-8"))
    assert versions.pop("inputs")
    file.write_text(json.dumps(versions), encoding="utf-8")
    CHANGED["policy"][1](home)


UNUSED = ("policy/README.md", "reward/Thumbs.db", "unused.py")
ALLOWED = "resume_allow_changes=true"
UNCHANGED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "nothing": (lambda home: None, ()),
    "what is not read": (lambda home: [write(home, name, "new") for name in UNUSED], ()),
    "run of an older version": (no_digests, ()),
    "rows by a key": (lambda home: None, ("evaluation.prompts=1", ALLOWED)),
    "key": (lambda home: (home / "reward").rename(home / "moved"), ("reward.components.model.path=moved", ALLOWED)),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_nothing_is_said_where_nothing_changed(home: Path, name: str, capsys):
    change, words = UNCHANGED[name]
    change(home)
    assert main(["resume=run", "training.iterations=2", *words]) == 0
    assert "changed under" not in capsys.readouterr().err + (home / "run" / "run.log").read_text(encoding="utf-8")
