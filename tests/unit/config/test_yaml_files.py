"""Every YAML file in configs/ composes, and says what it claims to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from apa_cli.config.compose import compose_raw, compose_train
from apa_cli.config.keys import COMPONENTS, SWEEP, all_keys, groups
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import config_dir, recipes
from apa_cli.errors import UserError

GROUP_FILES = sorted(path for group in groups() for path in (config_dir() / group).glob("*.yaml"))

SWEEP_FILES = sorted((config_dir() / SWEEP).glob("*.yaml"))


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return leaves


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def written(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_nothing_lies_in_configs_that_these_tests_do_not_know():
    known = {*GROUP_FILES, *recipes().values(), config_dir() / "train.yaml", config_dir() / "hydra/help/train.yaml"}
    known |= set(SWEEP_FILES)
    # Other commands keep a file of their own at the top.
    found = {path for path in config_dir().rglob("*.yaml") if path.parent != config_dir()}
    assert found <= known


def test_every_group_has_a_choice():
    assert {path.parent.name for path in GROUP_FILES} == set(groups())


@pytest.mark.parametrize("name", recipes())
def test_recipe_composes(name: str):
    theirs = ["policy.path=p", "reward.path=r", "data.path=d.jsonl"] if name == "own" else []
    assert isinstance(compose_train([f"config={name}", *theirs]), TrainConfig)


@pytest.mark.parametrize("key", ["policy.path", "reward.path", "data.path"])
def test_the_own_recipe_has_nothing_built_in(key: str):
    given = [f"{name}=mine" for name in ("policy.path", "reward.path", "data.path") if name != key]
    with pytest.raises(UserError, match=f"{key}: not set"):
        compose_train(["config=own", *given])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.path=d.jsonl"], "data.eval_path: still the built-in task's prompts"),
        (["data.path=d.jsonl", "data.eval_path=null"], "evaluation.reward.function: still the built-in task's"),
    ],
)
def test_the_built_in_task_does_not_judge_another(overrides: list[str], expected: str):
    with pytest.raises(UserError, match=expected):
        compose_train(overrides)


@pytest.mark.parametrize("name", recipes())
def test_recipe_has_a_header(name: str):
    package, title, hardware, *_ = recipes()[name].read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    assert title.startswith("# ")
    assert hardware.startswith("# Hardware:")
    if name.startswith(("reviews_", "sums_")):
        assert "run on two CPU cores" in hardware
    elif name != "own":
        assert "Not run here" in hardware


def is_preset(path: Path) -> bool:
    """Whether the file sets keys of other groups too."""
    return path.read_text(encoding="utf-8").startswith("# @package _global_")


def parts_of(path: Path) -> tuple[dict[str, object], list[str]]:
    """Dotted keys, and choices of other groups, with those of the file that it is another name for."""
    body = read(path)
    keys, choices = {}, []
    for entry in body.pop("defaults", []):
        if isinstance(entry, dict):
            choices += [f"{key.removeprefix('override /')}={name}" for key, name in entry.items()]
        elif entry != "_self_":
            keys, choices = parts_of(path.with_name(f"{entry}.yaml"))
    return keys | flat(body, "" if is_preset(path) else f"{path.parent.name}."), choices


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_group_file_only_sets_keys(path: Path):
    """`objective=ppo` and its keys set one by one give the same configuration."""
    group, keys, choices = path.parent.name, *parts_of(path)
    assert set(keys) <= set(all_keys())
    by_file = compose_raw([f"{group}={path.stem}", "output_dir=x"])
    by_key = compose_raw(["output_dir=x", *choices, *(f"{key}={written(value)}" for key, value in keys.items())])
    assert by_file == by_key


@pytest.mark.parametrize("name", recipes())
def test_a_choice_on_the_command_line_wins_over_the_recipe(name: str):
    """What a group's file may set, a recipe leaves to that file: otherwise `objective=awr` would not get through."""
    files = [path for path in GROUP_FILES if not is_preset(path)]  # a preset's numbers are a recipe's to change
    choosable = {key for path in files for key in flat(read(path), f"{path.parent.name}.")}
    body = {key: value for key, value in read(recipes()[name]).items() if key != "defaults"}
    assert not choosable & set(flat(body))


def test_no_yaml_names_code():
    for path in config_dir().rglob("*.yaml"):
        assert "_target_" not in path.read_text(encoding="utf-8")


def test_default_is_reviews_apa():
    config = compose_train(["output_dir=x"])
    assert config == compose_train(["config=reviews_apa", "output_dir=x"])
    assert (config.objective.name, config.objective.kl_lambda) == ("apa", 0.3)
    assert config.policy.path == "builtin:reviews/policy"


def test_two_runs_get_two_folders():
    assert compose_train([]).output_dir != compose_train([]).output_dir


# The authors' runs on HH: λ, learning rate, rollouts, minibatch.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hh_pythia160m_apa", (0.1, 1e-6, 128, 8)),
        ("hh_pythia160m_awr", (2.0, 1e-6, 128, 8)),
        ("hh_pythia1b_apa", (0.1, 1e-6, 64, 2)),
        ("hh_pythia1b_awr", (2.0, 1e-6, 64, 2)),
    ],
)
def test_hh_recipes_follow_the_paper(name: str, expected: tuple[float, float, int, int]):
    c = compose_train([f"config={name}"])
    assert (
        c.objective.kl_lambda,
        c.optimizer.learning_rate,
        c.rollout.batch_size,
        c.training.minibatch_size,
    ) == expected
    assert c.data.max_prompt_tokens + c.generation.max_new_tokens == 1000
    assert (c.data.format, c.evaluation.prompts, c.training.epochs_per_rollout) == ("hh", 280, 2)


def test_hh_ppo_follows_the_paper():
    c = compose_train(["config=hh_pythia160m_ppo"])
    o = c.objective
    assert (o.kl_coef, o.kl_target, o.kl_horizon, o.clip_range, o.score_clip) == (0.05, 6.0, 10_000, 0.2, 10.0)
    assert c.optimizer.learning_rate == 8e-6


def test_every_key_can_be_set_and_is_explained():
    samples = {int: 7, float: 0.5, bool: True, str: "sample", list: ["a", "b"], dict: {"a": 1}}
    values: dict[str, Any] = {}
    for key in all_keys().values():
        assert key.help, f"{key.name} has no help"
        values[key.name] = key.choices[-1] if key.choices else samples[key.type]
    values["optimizer.betas"] = [0.1, 0.2]
    values = {name: {} if name in COMPONENTS else value for name, value in values.items()}
    overrides = [
        f"{name}=[{value[0]},{value[1]}]"
        if isinstance(value, list)
        else f"{name}={{{'a:1' if value else ''}}}"
        if isinstance(value, dict)
        else f"{name}={value}"
        for name, value in values.items()
    ]
    composed = compose_raw(overrides)
    for name, value in values.items():
        node: Any = composed
        for part in name.split("."):
            node = node[part]
        assert node == value, name


@pytest.mark.parametrize("path", SWEEP_FILES, ids=lambda path: f"sweep={path.stem}")
def test_a_sweep_file_changes_no_key_of_a_run(path: Path):
    if extra := path.stem.removesuffix("_local") if path.stem != "local" else "":
        plugin = "hydra_optuna_sweeper" if extra == "optuna" else f"hydra_{extra}_launcher"
        pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"needs the extra {extra}")
    assert compose_raw([f"sweep={path.stem}", "output_dir=x"]) == compose_raw(["output_dir=x"])
