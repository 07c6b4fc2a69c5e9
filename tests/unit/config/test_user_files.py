"""`config=path/to/mine.yaml`: a user's file that holds only what differs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from refused import refusal

from apa_cli.config.compose import compose_train
from apa_cli.config.overrides import prepared
from apa_cli.errors import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def same_but(base: list[str], **changes: object) -> object:
    config = compose_train([*base, "output_dir=x"])
    return dataclasses.replace(config, **changes)


OWN = "policy.path: p\nreward.path: r\ndata.path: d.jsonl\n"
OWN_WORDS = ["config=own", "policy.path=p", "reward.path=r", "data.path=d.jsonl"]
REVIEWS = "defaults: [reviews_apa]\n"


@pytest.mark.parametrize("defaults", ["", "defaults: []\n", "defaults: [_self_]\n", "defaults: [own]\n"])
def test_without_a_recipe_it_has_nothing_built_in(workdir: Path, defaults: str):
    write(workdir / "mine.yaml", f"{defaults}{OWN}seed: 3\n")
    config = compose_train(["config=mine.yaml", "output_dir=x"])
    assert config == same_but(OWN_WORDS, seed=3)
    assert (config.data.eval_path, config.evaluation.reward.kind) == (None, "none")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("# nothing yet\n", "policy.path"),
        ("objective.kl_lambda: 0.5\n", "policy.path"),
        ("policy.path: p\n", "data.path"),
        ("defaults: [{objective: ppo}]\n", "policy.path"),
    ],
)
def test_a_file_for_the_built_in_task_is_told_how_to_begin(workdir: Path, text: str, key: str):
    write(workdir / "mine.yaml", text)
    with pytest.raises(UserError, match=rf"{key}: not set; .* begins with `defaults: \[reviews_apa\]`"):
        compose_train(["config=mine.yaml"])


@pytest.mark.parametrize("defaults", ["[reviews_ppo]", "[reviews_ppo, _self_]", "[/config/reviews_ppo]"])
def test_it_extends_a_named_recipe(workdir: Path, defaults: str):
    write(workdir / "mine.yaml", f"defaults: {defaults}\nseed: 3\n")
    assert compose_train(["config=mine.yaml", "output_dir=x"]) == same_but(["config=reviews_ppo"], seed=3)


@pytest.mark.parametrize("choice", ["objective: ppo", "/objective: ppo", "override /objective: ppo"])
@pytest.mark.parametrize("base", ["reviews_apa, ", "reviews_awr, "])
def test_it_chooses_a_group_and_the_command_line_wins(workdir: Path, choice: str, base: str):
    write(workdir / "mine.yaml", f"defaults: [{base}{{{choice}}}]\n")
    assert compose_train(["config=mine.yaml"]).objective.name == "ppo"
    assert compose_train(["config=mine.yaml", "objective=apa"]).objective.name == "apa"


def test_its_keys_win_over_the_recipe_and_lose_to_the_command_line(workdir: Path):
    write(workdir / "mine.yaml", f"{REVIEWS}objective: {{kl_lambda: 0.7}}\ntraining: {{iterations: 5}}\n")
    config = compose_train(["config=mine.yaml", "training.iterations=6"])
    assert (config.objective.kl_lambda, config.training.iterations) == (0.7, 6)


def test_a_key_set_directly_does_what_the_groups_file_does(workdir: Path):
    write(workdir / "a.yaml", f"{REVIEWS}objective: {{name: ppo}}\n")
    write(workdir / "b.yaml", f"{REVIEWS}objective.name: ppo\n")
    write(workdir / "c.yaml", "defaults: [reviews_apa, {objective: ppo}]\n")
    configs = [
        compose_train([choice, "output_dir=x"]) for choice in ("config=a.yaml", "config=b.yaml", "config=c.yaml")
    ]
    assert configs[0] == configs[1] == configs[2] == compose_train(["objective=ppo", "output_dir=x"])


def test_dotted_and_nested_keys_mix(workdir: Path):
    write(workdir / "mine.yaml", f"{OWN}policy.adapter.r: 4\npolicy:\n  adapter:\n    alpha: 2\n  revision: main\n")
    policy = compose_train(["config=mine.yaml"]).policy
    assert (policy.adapter.r, policy.adapter.alpha, policy.revision) == (4, 2.0, "main")


def test_files_extend_files_beside_them(workdir: Path):
    write(workdir / "team/base.yaml", "defaults: [reviews_ppo]\nseed: 1\ntraining.iterations: 9\n")
    write(workdir / "team/mine/run.yaml", "defaults: [../base.yaml]\nseed: 2\n")
    config = compose_train(["config=team/mine/run.yaml"])
    assert (config.objective.name, config.seed, config.training.iterations) == ("ppo", 2, 9)


def test_places_a_file_can_be(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(workdir / "home"))
    write(workdir / "home/a.yaml", f"{OWN}seed: 1\n")
    write(workdir / "with space, no.yml", f"{OWN}seed: 2\n")
    write(workdir / "with space/it's.yml", f"{OWN}seed: 2\n")
    assert compose_train(["config=~/a.yaml"]).seed == 1
    assert compose_train([f"config={workdir}/home/a.yaml"]).seed == 1
    assert compose_train(["config=./home/../home/a.yaml"]).seed == 1
    assert compose_train(["config=with space/it's.yml"]).seed == 2


def test_overrides_name_files_in_full(workdir: Path):
    """A job that a launcher starts elsewhere has to find them."""
    here = os.getcwd()
    words = ["config=a.yaml,reviews_ppo", "seed=1"]
    assert prepared(words, several=True) == [f"config={here}/a.yaml,reviews_ppo", "seed=1"]
    assert prepared(["config=reviews_ppo"]) == ["config=reviews_ppo"]
    assert prepared(["config=b c.yaml"]) == [f"config='{here}/b c.yaml'"]


def test_interpolation_reaches_other_keys(workdir: Path):
    write(
        workdir / "mine.yaml", f"{OWN}training.iterations: 12\noptimizer.warmup_iterations: ${{training.iterations}}\n"
    )
    assert compose_train(["config=mine.yaml"]).optimizer.warmup_iterations == 12


BAD_FILES = [
    ("objectiv: {name: ppo}", "mine.yaml: objectiv: unknown key; did you mean objective?"),
    ("training: {iteratons: 3}", "mine.yaml: training.iteratons: unknown key; did you mean training.iterations?"),
    ("objective: ppo", "defaults: [{objective: ppo}]"),
    ("reward: function", "reward.kind: function"),
    ("defaults: reviews_ppo", "mine.yaml: defaults: not a list; write a list, such as `defaults: [reviews_apa]`"),
    ("defaults: [{objectve: ppo}]", "mine.yaml: defaults: no group 'objectve'; did you mean objective?"),
    ("defaults: [other.yaml]", "config=other.yaml: no such file"),
    ("policy: {path: '${nope'}", "mine.yaml: policy.path"),
    ("hydra: {mode: MULTIRUN}", "hydra.mode: set in a file, where it does not start a sweep; leave it out, and add -m"),
    ("reward: {_target_: os.system}", "mine.yaml: reward._target_: unknown key"),
]


@pytest.mark.parametrize(("text", "line"), BAD_FILES)
def test_what_is_wrong_in_a_file_names_the_file(workdir: Path, text: str, line: str):
    write(workdir / "mine.yaml", text)
    assert line in refusal(compose_train, ["config=mine.yaml"])


def test_a_name_that_is_a_file_here(workdir: Path):
    write(workdir / "mine.yaml", f"{OWN}seed: 1\n")
    with pytest.raises(UserError, match=r"did you mean the file config=mine\.yaml\?"):
        compose_train(["config=mine"])


AWR = ["objective=awr"], ["objective.name=awr"], ["config=reviews_awr"], ["config=awr.yaml"], ["config=group.yaml"]


@pytest.mark.parametrize(
    ("words", "kl_lambda"),
    [
        ([], 0.3),
        (["objective=ppo"], None),  # unread
        *((words, 2.0) for words in AWR),
        (["config=reviews_awr", "objective=apa"], 0.3),
        (["objective=awr", "objective.kl_lambda=0.7"], 0.7),
        (["config=given.yaml", "objective=awr"], 0.9),  # the user's own number stays
        (["objective=awr", "objective.kl_target=5", "objective.kl_lambda_min=1.5", "objective.kl_lambda_max=3"], 2.0),
        (["config=hh_pythia160m_apa"], 0.1),
        (["config=hh_pythia160m_apa_offline"], 1.0),
        (["config=hh_pythia160m_apa", "objective.name=awr"], 2.0),  # what a recipe chose for APA
        (["config=hh_pythia160m_awr", "objective=apa"], 0.3),
        (["config=reviews_awr_offline"], 0.5),
        (["config=old.yaml"], 0.3),  # of a run made before: as it was
    ],
)
def test_lambda_is_the_objectives_own_unless_given(workdir: Path, words: list[str], kl_lambda: float):
    write(workdir / "awr.yaml", f"{REVIEWS}objective: {{name: awr}}\n")
    write(workdir / "group.yaml", "defaults: [reviews_apa, {objective: awr}]\n")
    write(workdir / "given.yaml", f"{REVIEWS}objective.kl_lambda: 0.9\n")
    write(workdir / "old.yaml", f"{OWN}objective: {{name: awr, kl_lambda: 0.3}}\n")
    assert compose_train(words).objective.kl_lambda == kl_lambda


def test_text_is_read_as_it_is_written(workdir: Path):
    """YAML 1.1 and Hydra's grammar see numbers and truths in it: 1234e5 would come back as 123400000.0, no as False."""
    write(workdir / "mine.yaml", f"{REVIEWS}policy: {{revision: 1234e5, path: 010}}\ngeneration.stop: [no, 1:30]\n")
    config = compose_train(["config=mine.yaml", "tracking.wandb.group=1234e56", "tracking.wandb.name=true"])
    assert (config.policy.revision, config.policy.path, config.generation.stop) == ("1234e5", "010", ["no", "1:30"])
    assert (config.tracking.wandb.group, config.tracking.wandb.name) == ("1234e56", "true")


def test_what_a_file_leaves_unset_the_command_line_sets(workdir: Path):
    write(workdir / "mine.yaml", f"{REVIEWS}policy:\n  path: ???\nseed: ???\n")
    config = compose_train(["config=mine.yaml", "policy.path=p", "seed=3"])
    assert (config.policy.path, config.seed) == ("p", 3)


def test_the_home_folder(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(workdir))
    write(workdir / "mine.yaml", f"{REVIEWS}output_dir: ~/a\n")
    assert compose_train(["config=mine.yaml"]).output_dir == f"{workdir}/a"
    for typed in ("output_dir=~/b c", "output_dir='~/b c'"):
        assert compose_train(["config=mine.yaml", typed]).output_dir == f"{workdir}/b c"
