"""Is this configuration possible? Limits of single fields first, then rules that span fields. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from apa_cli.config.keys import expected, not_set
from apa_cli.config.objective_checks import check_objective
from apa_cli.config.offline_checks import check_source
from apa_cli.config.reward_checks import check_key_name, check_rewards
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import config_dir
from apa_cli.errors import UserError

MISSING = "???"  # how OmegaConf writes a value that is not set
GONE = {("generation.backend", "paged"): "use generation.backend=hf, or static or vllm on a GPU"}  # choices of old runs


def check_config(config: TrainConfig) -> None:
    """Raise UserError, naming the key and what to do, for the first thing that is wrong."""
    check_fields(config)
    _check_policy(config)
    _check_revisions(config)
    check_source(config)
    check_rewards(config)
    _check_leftovers(config)
    _check_chat(config)
    check_objective(config)
    _check_best(config)
    _check_backend(config)
    _check_compile(config)
    _check_sizes(config)
    check_key_name(config.evaluation.judge.api_key_env, "evaluation.judge.api_key_env", example="OPENAI_API_KEY")


def check_fields(config: Any, prefix: str = "") -> None:
    """Apply each field's own choices and limits, all the way down."""
    for key, value, metadata in _leaves(config, prefix):
        if isinstance(value, str) and value == MISSING:
            raise not_set(key)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                raise UserError(key, f"{item} is not a finite number", "give an ordinary number")
        if value is None:  # only where the annotation allows it
            continue
        if isinstance(value, list):
            _check_list(key, value)
        if isinstance(value, str) and not value.strip():
            raise UserError(key, "empty text", "give it a value, or leave the key out")
        if "choices" in metadata and value not in metadata["choices"]:
            if (instead := GONE.get((key, value))) is not None:
                raise UserError(key, f"{value!r} is no longer a choice", instead)
            if key == "objective.name" and (config_dir() / "objective" / f"{value}.yaml").is_file():
                remedy = f"write objective={value}, in a file under defaults: `- objective: {value}`"
                raise UserError(key, f"{value} is a choice of several keys", remedy)
            raise UserError(key, f"{value!r} is not a choice", one_of(str(value), metadata["choices"]))
        _check_limits(key, value, metadata.get("limits", {}))


def one_of(wrong: str, choices: tuple[str, ...] | list[str]) -> str:
    """The nearest choice where one is near, then all of them."""
    near = get_close_matches(wrong, choices, n=1)
    return f"{f'did you mean {near[0]}? ' if near else ''}choose one of {', '.join(choices)}"


def _leaves(config: Any, prefix: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        elif isinstance(value, dict) and all(map(dataclasses.is_dataclass, value.values())):
            for name, section in value.items():
                yield from _leaves(section, f"{key}.{name}.")
        else:
            yield key, value, dict(field.metadata)


def _check_limits(key: str, value: Any, limits: dict[str, float]) -> None:
    tests: dict[str, tuple[str, Callable[[float], bool]]] = {
        "minimum": ("at least", lambda bound: value >= bound),
        "maximum": ("at most", lambda bound: value <= bound),
        "above": ("greater than", lambda bound: value > bound),
        "below": ("less than", lambda bound: value < bound),
    }
    if not all(tests[name][1](bound) for name, bound in limits.items()):
        allowed = " and ".join(f"{tests[name][0]} {bound:,g}" for name, bound in limits.items())
        raise UserError(key, f"{value:g} is out of range", f"give a number {allowed}")


def _check_list(key: str, items: list[Any]) -> None:
    for item in items:
        if isinstance(item, (list, dict)):
            kind = "a list" if isinstance(item, list) else "keys"
            raise UserError(key, f"holds {kind} in its list ({item})", f"give {expected(key)}")
        # A stop string may well be a blank line, so only the empty string is refused.
        if item == "" or item is None:
            raise UserError(key, "an empty item in the list", "remove it, or quote it")


def _check_policy(config: TrainConfig) -> None:
    adapter, policy = config.policy.adapter, config.policy
    if adapter.r > 0 and adapter.path is not None:
        raise UserError(
            "policy.adapter.r",
            f"{adapter.r}, but the trained adapter in policy.adapter.path has its own rank",
            "set policy.adapter.r=0",
        )
    for name, given in (("dropout", adapter.dropout > 0), ("target_modules", adapter.target_modules is not None)):
        if given and not adapter.enabled:
            raise UserError(
                f"policy.adapter.{name}", "set, but there is no adapter", "add policy=lora, or policy.adapter.r=16"
            )
    if adapter.target_modules is not None and not adapter.target_modules:
        raise UserError(
            "policy.adapter.target_modules", "an empty list adapts nothing", "name layers, or set it to null"
        )
    attention = policy.attn_implementation or ""
    if attention.startswith("flash_attention_") and config.precision != "bf16":
        raise UserError(
            "policy.attn_implementation", f"{attention} does not run in {config.precision}", "add precision=bf16"
        )
    if policy.dtype == "bf16" and config.precision != "bf16":
        raise UserError("policy.dtype", f"bf16, but arithmetic is in {config.precision}", "add precision=bf16")
    if config.value.kind == "adapter" and not adapter.enabled:
        raise UserError(
            "value.kind",
            "adapter, but the policy has no adapter whose base it could share",
            "add policy=lora, or value=separate",
        )
    if config.value.kind != "separate" and config.value.path is not None:
        what = {
            "shared": "this critic is a head on the policy and loads nothing",
            "adapter": "this critic is an adapter on the policy's base and loads nothing",
            "none": "set, but value.kind=none",
        }[config.value.kind]
        raise UserError("value.path", what, "add value=separate, or value.path=null")


def _check_leftovers(config: TrainConfig) -> None:
    """The default recipe's prompts and evaluator say nothing about another task."""
    if config.data.path.startswith("builtin:"):
        return
    start = "start from config=own, as a YAML file without `defaults` does"
    if (config.data.eval_path or "").startswith("builtin:"):
        raise UserError(
            "data.eval_path",
            f"still the built-in task's prompts, while data.path={config.data.path}",
            f"set data.eval_path=null (rows are set aside) or your own; or {start}",
        )
    judge = config.evaluation.reward
    if any((part.function or "").startswith("apa_cli.assets.") for part in (judge, *judge.components.values())):
        raise UserError(
            "evaluation.reward.function",
            f"still the built-in task's evaluator, while data.path={config.data.path}",
            f"set it to null and evaluation.reward.kind=none, or to your own; or {start}",
        )


def _check_revisions(config: TrainConfig) -> None:
    for key, path, revision in (
        ("policy.adapter", config.policy.adapter.path, config.policy.adapter.revision),
        ("reference", config.reference.path, config.reference.revision),
        ("value", config.value.path, config.value.revision),
    ):
        if revision is not None and path is None:
            raise UserError(f"{key}.revision", f"set, but {key}.path is not", f"set {key}.path, or leave it null")


def _check_chat(config: TrainConfig) -> None:
    data = config.data
    for name, given in (("system_prompt", data.system_prompt), ("template_arguments", data.template_arguments)):
        if given and data.format in ("text", "hh"):
            remedy = "data.format=hh_chat" if data.format == "hh" else "data.format=chat"
            raise UserError(
                f"data.{name}",
                f"set, but data.format={data.format} uses no chat template",
                f"add {remedy}, or unset it",
            )
    if data.prompt_template is not None and "{prompt}" not in data.prompt_template:
        raise UserError("data.prompt_template", "contains no {prompt}", "put {prompt} where the prompt belongs")
    if data.prompt_template is not None and data.format not in ("auto", "text"):
        problem = f"set, but it applies to plain text, not to data.format={data.format}"
        raise UserError("data.prompt_template", problem, "unset it, or add data.format=text")
    own = ("conversation", "messages", "chat_template", "add_generation_prompt", "tokenize", "continue_final_message")
    for argument in own:
        if argument in data.template_arguments:
            raise UserError("data.template_arguments", f"{argument} is set by apa-cli", "leave it out")


def _check_best(config: TrainConfig) -> None:
    metric = config.checkpoint.best_metric
    if metric is None:
        return
    if not metric.startswith("eval/"):
        raise UserError(
            "checkpoint.best_metric",
            f"{metric} is not measured on held-out prompts",
            "name an eval/ metric, such as eval/reward",
        )
    if config.evaluation.prompts == 0:
        raise UserError(
            "checkpoint.best_metric",
            "set, but evaluation.prompts=0",
            "set evaluation.prompts, or checkpoint.best_metric=null",
        )
    if metric.startswith("eval/evaluator") and not config.evaluation.reward.given:
        raise UserError(
            "checkpoint.best_metric",
            f"{metric}, but there is no evaluator",
            "set evaluation.reward.kind, or use eval/reward",
        )


def _check_backend(config: TrainConfig) -> None:
    generation = config.generation
    if generation.rows is not None and generation.backend != "hf":
        raise UserError(
            "generation.rows",
            f"not used by generation.backend={generation.backend}, which manages its own cache",
            "set it to null, or use generation.backend=hf",
        )
    if generation.backend == "vllm":
        if config.device == "cpu":
            raise UserError("generation.backend", "vllm needs a GPU, but device=cpu", "use generation.backend=hf")
        if find_spec("vllm") is None:
            raise UserError(
                "generation.backend",
                "vllm is not installed",
                "pip install 'apa-cli[vllm]', or use generation.backend=hf",
            )


def _check_compile(config: TrainConfig) -> None:
    if not config.training.compile:
        return
    if config.policy.gradient_checkpointing:
        problem = "compiled code decides itself what to keep, but policy.gradient_checkpointing=true"
        raise UserError("training.compile", problem, "set training.compile or policy.gradient_checkpointing to false")
    if config.value.kind == "adapter":
        problem = "with value.kind=adapter, policy and critic would be recompiled for each other"
        raise UserError("training.compile", problem, "set it to false, or add value=shared")


def _check_sizes(config: TrainConfig) -> None:
    _not_above(
        "generation.min_new_tokens",
        config.generation.min_new_tokens,
        "generation.max_new_tokens",
        config.generation.max_new_tokens,
    )
    _not_above(
        "training.minibatch_size", config.training.minibatch_size, "rollout.batch_size", config.rollout.batch_size
    )
    _not_above(
        "optimizer.warmup_iterations",
        config.optimizer.warmup_iterations,
        "training.iterations",
        config.training.iterations,
    )
    stop_if = config.training.stop_if
    if (stop_if.kl_above, stop_if.entropy_below, stop_if.reward_below) != (None, None, None):
        iterations = config.training.iterations
        _not_above("training.stop_if.patience", stop_if.patience, "training.iterations", iterations)
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(
            "optimizer.betas",
            f"{betas} is not a pair of decay rates",
            "give two numbers from 0 up to but not including 1, such as [0.9,0.95]",
        )


def _not_above(key: str, value: int, bound_key: str, bound: int) -> None:
    if value > bound:
        raise UserError(key, f"{value} is more than {bound_key}={bound}", f"lower {key} or raise {bound_key}")
