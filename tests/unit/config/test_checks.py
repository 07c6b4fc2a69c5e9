"""The rules themselves, on dataclasses, without Hydra."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from refused import refusal

from apa_cli.config.checks import check_config
from apa_cli.config.keys import all_keys
from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError


def valid() -> TrainConfig:
    config = TrainConfig(output_dir="runs/x")
    config.policy.path, config.data.path, config.reward.path = "my/policy", "prompts.jsonl", "my/reward"
    return config


def changed(**changes: Any) -> TrainConfig:
    """`objective__name="ppo"` sets objective.name."""
    config = valid()
    for path, value in changes.items():
        node: Any = config
        *parents, leaf = path.split("__")
        for parent in parents:
            node = getattr(node, parent)
        assert hasattr(node, leaf)
        setattr(node, leaf, value)
    return config


OFFLINE = {"rollout__source": "offline"}
REFERENCE = {
    "advantage__name": "reference",
    "advantage__baseline": "value",
    "value__kind": "none",
    "objective__score_scaling": "none",
}
GROUP = {"advantage__name": "group", "value__kind": "none", "rollout__responses_per_prompt": 4}
LEAST_SQUARES = GROUP | {"objective__level": "sequence", "advantage__baseline": "least_squares"}


def test_a_valid_configuration_passes():
    check_config(valid())


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__name": "ppo", "objective__kl_target": 6.0},
        {"objective__kl_target": 6.0, "objective__kl_horizon": 1},  # the horizon is ppo's
        {"objective__name": "awr", "objective__kl_target": 6.0, "objective__kl_lambda": 20.0},
        {"objective__target_bound": 5.0, "objective__huber_delta": 1.0},
        {"objective__kl_lambda": 0.01},  # λ stays as it is: it has no floor
        {"policy__adapter__r": 8, "policy__adapter__dropout": 0.1, "policy__adapter__target_modules": ["q_proj"]},
        {"policy__adapter__path": "my/adapter", "policy__adapter__dropout": 0.1},
        {"policy__attn_implementation": "flash_attention_2", "precision": "bf16"},
        {"policy__dtype": "bf16", "precision": "bf16"},
        {"reward__kind": "function", "reward__function": "package.module:score"},
        {"reward__kind": "function", "reward__function": "../my folder/reward.py:score"},
        {"reward__kind": "function", "reward__function": "m:f", "reward__path": "left over from the recipe"},
        {"evaluation__reward__kind": "model", "evaluation__reward__path": "my/judge"},
        {"training__minibatch_size": 64, "rollout__batch_size": 64},
        {"generation__min_new_tokens": 128},
        {"generation__stop": ["\n"]},
        {"optimizer__betas": [0.0, 0.999]},
        {"optimizer__warmup_iterations": 100},
        {"evaluation__prompts": 0},
        {"training__stop_if__reward_below": -1.5, "training__stop_if__patience": 100},
        {"training__stop_if__patience": 5, "training__iterations": 2},  # no limit is set
        {"seed": 0},
        GROUP,
        {**GROUP, "objective__name": "ppo", "objective__value_clip_range": None, "advantage__group_scale": True},
        {"rollout__responses_per_prompt": 8},  # with a critic
        {**GROUP, "optimizer__value_learning_rate": 1e-3},  # a recipe's, without the critic it was for
        {**OFFLINE, "data__score_column": "score", "rollout__reference_cache": "somewhere"},
        {**OFFLINE, "data__score_column": "score", "reward__path": None, "evaluation__prompts": 0},
        {**OFFLINE, **REFERENCE, "objective__level": "sequence"},
        {**OFFLINE, "objective__name": "awr", "objective__missing_eos_penalty": 1.0, "value__warmup_iterations": 5},
    ],
)
def test_possible(changes: dict[str, Any]):
    check_config(changed(**changes))


IMPOSSIBLE = [
    ({**OFFLINE, "objective__name": "ppo"}, "objective.name", "objective=apa"),
    ({**OFFLINE, "objective__kl_target": 5.0}, "objective.kl_target", "choose objective.kl_lambda"),
    ({**OFFLINE, **GROUP}, "advantage.name", "advantage=gae"),
    ({**OFFLINE, "rollout__responses_per_prompt": 2}, "rollout.responses_per_prompt", "set it to 1"),
    ({**OFFLINE, "value__kind": "none"}, "advantage.name", "value=separate"),
    ({**OFFLINE, "training__stop_if__kl_above": 9.0}, "training.stop_if.kl_above", "set it to null"),
    ({**OFFLINE, "training__stop_if__entropy_below": 0.1}, "training.stop_if.entropy_below", "set it to null"),
    ({**OFFLINE, "training__stop_if__reward_below": 0.1}, "training.stop_if.reward_below", "set it to null"),
    ({**OFFLINE, "reward__path": None}, "reward.path", "reward.path=MODEL"),
    ({**OFFLINE, "reward__path": None, "data__score_column": "score"}, "reward.path", "reward.path=MODEL"),
    ({"data__score_column": "score"}, "data.score_column", "rollout.source=offline"),
    ({"data__response_column": "answer"}, "data.response_column", "rollout.source=offline"),
    ({"rollout__reference_cache": "x"}, "rollout.reference_cache", "rollout.source=offline"),
    ({"value__kind": "none"}, "advantage.name", "advantage=group"),
    ({**GROUP, "value__kind": "separate"}, "value.kind", "value=none"),
    ({"advantage__name": "group"}, "value.kind", "value=none rollout.responses_per_prompt=4"),
    ({**GROUP, "value__path": "x"}, "value.path", "value.path=null"),
    ({**GROUP, "rollout__responses_per_prompt": 1}, "rollout.responses_per_prompt", "rollout.responses_per_prompt=4"),
    ({**GROUP, "rollout__responses_per_prompt": 3}, "rollout.batch_size", "make it 66"),
    ({"rollout__responses_per_prompt": 65}, "rollout.batch_size", "make it 65"),
    ({**GROUP, "advantage__gae_lambda": 1.0}, "advantage.gae_lambda", "advantage.gae_lambda=0.95"),
    ({**GROUP, "advantage__gamma": 0.99}, "advantage.gamma", "advantage.gamma=1"),
    ({**GROUP, "objective__value_coef": 0.5}, "objective.value_coef", "objective.value_coef=1"),
    ({**GROUP, "objective__value_clip_range": 0.3}, "objective.value_clip_range", "=0.2"),
    ({**GROUP, "value__warmup_iterations": 1}, "value.warmup_iterations", "value.warmup_iterations=0"),
    ({**GROUP, "value__keep": True}, "value.keep", "value.keep=false"),
    ({"value__warmup_iterations": 100}, "value.warmup_iterations", "lower value.warmup_iterations"),
    ({"advantage__group_scale": True}, "advantage.group_scale", "advantage=group"),
    ({"objective__name": "grpo"}, "objective.name", "advantage=group value=none"),
    ({"objective__name": "gvpo"}, "objective.name", "write objective=gvpo"),
    ({**GROUP, "advantage__baseline": "quantile"}, "advantage.baseline", "advantage=reference"),
    ({"objective__level": "sequence"}, "objective.level", "advantage=group value=none"),
    ({**GROUP, "objective__name": "awr", "objective__level": "sequence"}, "objective.level", "add objective=apa"),
    ({"objective__name": "ppo", "objective__anchor": "rollout"}, "objective.anchor", "set it to initial"),
    ({**GROUP, "objective__name": "grpo", "objective__kl_target": 6.0}, "objective.kl_target", "set it to null"),
    ({"objective__length_divisor": 32}, "objective.length_divisor", "objective=grpo"),
    ({"advantage__baseline": "mean"}, "advantage.baseline", "set it to leave_one_out"),
    ({**GROUP, "advantage__baseline": "value"}, "advantage.baseline", "least_squares"),
    ({**REFERENCE, "advantage__baseline": "mean"}, "advantage.baseline", "value or quantile"),
    ({**REFERENCE, "objective__score_scaling": "running"}, "objective.score_scaling", "none"),
    ({**REFERENCE, "objective__name": "ppo"}, "advantage.baseline", "objective=apa"),
    ({**REFERENCE, "value__kind": "separate"}, "value.kind", "value=none"),
    ({**GROUP, "advantage__baseline": "log_mean_exp", "advantage__group_scale": True},
     "advantage.group_scale", "false"),
    ({**GROUP, "advantage__baseline": "least_squares"}, "advantage.baseline", "objective=gvpo"),
    ({**LEAST_SQUARES, "training__minibatch_size": 18}, "training.minibatch_size", "make it 20"),
    ({"rollout__dynamic_sampling": 4}, "rollout.dynamic_sampling", "objective=grpo"),
    ({**OFFLINE, "objective__anchor": "rollout"}, "objective.anchor", "objective.anchor=initial"),
    ({**OFFLINE, **REFERENCE, "data__score_column": "s"}, "data.score_column", "set it to null"),
    ({"reward__path": None}, "reward.path", "reward.path=MODEL"),
    ({"reward__kind": "function"}, "reward.function", "reward.function="),
    ({"reward__function": "m:f"}, "reward.function", "reward.kind=function"),
    ({"evaluation__reward__kind": "model"}, "evaluation.reward.path", "evaluation.reward.path=MODEL"),
    ({"evaluation__reward__function": "m:f"}, "evaluation.reward.function", "evaluation.reward.kind=function"),
    ({"evaluation__reward__path": "my/judge"}, "evaluation.reward.path", "evaluation.reward.kind=model"),
    ({"objective__kl_target": 6.0, "objective__kl_lambda": 0.01}, "objective.kl_lambda", "objective.kl_lambda_min"),
    ({"objective__name": "awr", "objective__target_bound": 5.0}, "objective.target_bound", "objective=apa"),
    ({"objective__name": "ppo", "objective__huber_delta": 1.0}, "objective.huber_delta", "set it to null"),
    ({"objective__name": "awr", "objective__kl_target": 6.0, "objective__kl_lambda": 0.9},
     "objective.kl_lambda", "between 1 and 20"),
    ({"objective__kl_target": 6.0, "objective__kl_lambda_min": 20.0},
     "objective.kl_lambda_min", "lower objective.kl_lambda_min or raise objective.kl_lambda_max"),
    ({"objective__name": "ppo", "objective__kl_target": 6.0, "objective__kl_horizon": 64},
     "objective.kl_horizon", "raise it"),
    ({"objective__name": "ppo", "objective__kl_target": 6.0, "objective__kl_coef": 0.0},
     "objective.kl_coef", "objective.kl_target=null"),
    ({"generation__min_new_tokens": 129}, "generation.min_new_tokens", "generation.max_new_tokens=128"),
    ({"value__kind": "shared", "value__path": "x"}, "value.path", "value=separate"),
    ({"value__kind": "adapter", "policy__adapter__r": 8, "value__path": "x"}, "value.path", "value=separate"),
    ({"value__kind": "adapter"}, "value.kind", "policy=lora"),
    ({"training__minibatch_size": 65}, "training.minibatch_size", "rollout.batch_size=64"),
    ({"optimizer__warmup_iterations": 101}, "optimizer.warmup_iterations", "training.iterations=100"),
    ({"optimizer__betas": [0.9]}, "optimizer.betas", "two numbers"),
    ({"optimizer__betas": [0.9, 1.0]}, "optimizer.betas", "two numbers"),
    ({"policy__dtype": "bf16"}, "policy.dtype", "precision=bf16"),
    ({"policy__attn_implementation": "flash_attention_2"}, "policy.attn_implementation", "precision=bf16"),
    ({"policy__adapter__dropout": 0.1}, "policy.adapter.dropout", "policy=lora"),
    ({"policy__adapter__target_modules": ["q"]}, "policy.adapter.target_modules", "policy=lora"),
    ({"policy__adapter__r": 8, "policy__adapter__path": "a"}, "policy.adapter.r", "policy.adapter.r=0"),
    ({"generation__stop": ["ok", ""]}, "generation.stop", "leave it out"),
    ({"generation__backend": "vllm", "device": "cpu"}, "generation.backend", "backend=hf"),
    ({"policy__path": "???"}, "policy.path", "policy.path=VALUE"),
    ({"policy__path": "  "}, "policy.path", "give it a value"),
    ({"training__stop_if__kl_above": 20.0, "training__stop_if__patience": 101},
     "training.stop_if.patience", "lower training.stop_if.patience or raise training.iterations"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "key", "remedy"), IMPOSSIBLE)
def test_impossible(changes: dict[str, Any], key: str, remedy: str):
    line = refusal(check_config, changed(**changes))
    assert line.startswith(f"{key}: ")
    assert remedy in line


@pytest.mark.parametrize(
    "function", ["score", ":score", "m:", "m.py", "a-b:score", "a b:score", "m:not a name", "m::f"]
)
def test_not_a_function(function: str):
    with pytest.raises(UserError, match="does not name a function"):
        check_config(changed(reward__kind="function", reward__function=function))


def numbers() -> list[str]:
    return [key.name for key in all_keys().values() if key.type in (int, float)]


@pytest.mark.parametrize("key", numbers())
def test_every_number_is_kept_finite(key: str):
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert refusal(check_config, changed(**{key.replace(".", "__"): bad})).startswith(f"{key}: ")


@pytest.mark.parametrize("key", numbers())
def test_every_number_has_a_lower_limit(key: str):
    if key == "training.stop_if.reward_below":  # a reward may be anything
        check_config(changed(**{key.replace(".", "__"): -1}))
        return
    with pytest.raises(UserError, match="out of range") as caught:
        check_config(changed(**{key.replace(".", "__"): -1}))
    assert caught.value.where == key


@pytest.mark.parametrize("key", [key.name for key in all_keys().values() if key.choices])
def test_every_choice_is_kept(key: str):
    with pytest.raises(UserError, match="choose one of") as caught:
        check_config(changed(**{key.replace(".", "__"): "nonsense"}))
    assert caught.value.where == key


def test_limits_are_inclusive_or_not_as_declared():
    check_config(changed(generation__top_p=1.0))
    check_config(changed(advantage__gae_lambda=0.0))
    for key, value in [
        ("generation__top_p", 1.01),
        ("generation__temperature", 0.0),
        ("policy__adapter__dropout", 1.0),
    ]:
        with pytest.raises(UserError, match="out of range"):
            check_config(changed(**{key: value}))


def test_vllm_is_asked_for_before_anything_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    line = refusal(check_config, changed(generation__backend="vllm"))
    assert line.startswith("generation.backend: vllm is not installed; pip install 'apa-cli[vllm]'")
