"""Rewards by name: in YAML, on the command line, in a sweep, and back from a run's config.yaml."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from refused import refusal

from apa_cli.config.compose import compose_train
from apa_cli.config.members import member_name
from apa_cli.config.overrides import prepared

FREE = "reward.path=null"  # the built-in recipe has one


def weights(*overrides: str) -> dict[str, float]:
    return {name: part.weight for name, part in compose_train(list(overrides)).reward.components.items()}


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_new_name_is_typed_like_any_key(plus: str):
    config = compose_train([FREE, f"{plus}reward.components.a-b.path=m", f"{plus}reward.components.a-b.weight=-0.5"])
    (part,) = config.reward.components.values()
    assert (part.kind, part.path, part.weight, part.batch_size) == ("model", "m", -0.5, 64)


def test_a_recipes_weights_are_changed_and_its_rewards_taken_out():
    recipe = "config=reviews_apa_rewards"
    assert weights(recipe) == {"sentiment": 1.0, "form": 0.5}
    assert weights(recipe, "reward.components.form.weight=0.2") == {"sentiment": 1.0, "form": 0.2}
    assert weights(recipe, "~reward.components.form") == {"sentiment": 1.0}
    assert weights(recipe, "reward.components={new:{path:m,weight:3}}") == {"sentiment": 1.0, "form": 0.5, "new": 3.0}
    assert weights(recipe, "reward.components.new={path:m,weight:3}")["new"] == 3.0


def test_in_a_users_file_nested_and_dotted(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "policy.path: p\ndata.path: d\nreward:\n  path: null\n  components:\n    a: {path: m, weight: 2}\n"
        "reward.components.b.kind: http\nreward.components.b.url: http://127.0.0.1:1/score\n"
    )
    config = compose_train([f"config={file}"])
    assert {name: (part.kind, part.weight) for name, part in config.reward.components.items()} == {
        "a": ("model", 2.0),
        "b": ("http", 1.0),
    }
    assert config.reward.source == "2 × a (m) + 1 × b (http://127.0.0.1:1/score)"


def test_the_evaluator_may_be_several_too():
    several = "evaluation.reward.components.a.path=m"
    config = compose_train(["config=own", "policy.path=p", "reward.path=r", "data.path=d", several])
    assert config.evaluation.reward.given
    assert config.evaluation.reward.kind == "none"


def test_what_a_run_writes_is_read_back(tmp_path: Path):
    config = compose_train(["config=reviews_apa_rewards", "output_dir=o", "reward.components.form.weight=0.25"])
    OmegaConf.save(OmegaConf.create(asdict(config)), tmp_path / "config.yaml")
    assert compose_train([f"config={tmp_path / 'config.yaml'}"]) == config


def test_entries_are_begun_once_and_name_no_folder():
    words = ["seed=1", "reward.components.a.weight=1", "+reward.components.a.path=m", "reward.kind=model"]
    once = prepared(words)
    assert once == ["seed=1", "reward.components={a:{}}", words[1], words[2][1:], words[3]]
    assert prepared(once) == once
    assert member_name(once) == member_name(["seed=1", words[1], words[2], words[3]])
    assert "{" not in member_name(once)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([FREE, "reward=function", "reward.components.a.path=m"], "reward.kind: set, but the rewards are in"),
        ([FREE, "reward.components.mean.path=m"], "reward.components.mean: mean is the name of another metric"),
        ([FREE, "rollout=offline", "reward.components.score.path=m"],
         "reward.components.score: score is the name of another metric"),
        ([FREE, "rollout=offline", "reward.components.response_length.path=m"],
         "reward.components.response_length: response_length is the name of another metric"),
        ([FREE, "reward.components.a.path=m", "reward.components.a_std.path=m"],
         "reward.components.a_std: a_std is the name of another metric"),
        ([FREE, "reward.components.a.weight=inf"], "reward.components.a.weight: inf is not a finite number"),
        ([FREE, "reward.components.a.weight=x"], "reward.components.a.weight: 'x' is not a number; give a number"),
        ([FREE, "reward.components.a.weight=1"], "reward.components.a.path: not set, but reward.components.a.kind="),
        ([FREE, "+reward.components.a.zzz=1"], "reward.components.a.zzz: unknown key; a reward has kind, path, "),
        ([FREE, "reward.components=m"], "reward.components: "),
        ([FREE, "reward.components=null"], "reward.components: cannot be null; give names with keys below them"),
        ([FREE, "~reward.components"], "reward.components: cannot be deleted"),
        ([FREE, "reward.components.a.kind=function"], "reward.components.a.function: not set, but"),
        ([FREE, "reward.components.a.function=m:f"], "reward.components.a.function: set, but reward.components.a.kind"),
        ([FREE, "reward.components={a.b:{path:m}}"], "reward.components.a.b: "),
        (["reward.length_penalty=0.1", "reward.length_target=32"], "reward.length_target: 32, but no response is long"),
        (["reward.length_penalty=-1"], "reward.length_penalty: -1 is out of range"),
        (["evaluation.reward.length_penalty=1"], "evaluation.reward.length_penalty: unknown key"),
        (["reward=math"], "reward.answer_column: not set, but reward.kind=math needs it; give it"),
        (["reward.answer_column=a"], "reward.answer_column: set, but reward.kind=model; add reward.kind=math, or"),
        ([FREE, "reward.components.a={kind:math,answer_column:a}", "reward.components.a_unreadable.path=m"],
         "reward.components.a_unreadable: a_unreadable is the name of another metric"),
        (["reward.url=http://a/b"], "reward.url: set, but reward.kind=model; add reward.kind=http, or reward.url=null"),
        (["reward.kind=http", "reward.url=localhost:5000"], "reward.url: 'localhost:5000' is not a web address"),
        (["reward.kind=http", "'reward.url=\"http://me:secret@a/b\"'".strip("'")],
         "reward.url: contains a user name, a password, a query or a fragment"),
        (["reward.kind=http", "reward.url=http://a/b", "reward.api_key_env=hf_secret"],
         "reward.api_key_env: not the name of an environment variable"),
        (["reward.api_key_env=TOKEN"], "reward.api_key_env: set, but reward.kind=model"),
    ],
)  # fmt: skip
def test_one_line(overrides: list[str], line: str):
    assert refusal(compose_train, overrides).startswith(line)


def test_a_penalty_of_nothing_may_have_a_target():
    """So that a sweep over penalties may begin at 0."""
    assert compose_train(["reward.length_target=5"]).reward.length_penalty == 0
