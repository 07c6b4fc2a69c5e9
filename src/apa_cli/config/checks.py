"""Is this configuration possible? Limits of single fields first, then rules that span fields. Imports no torch.

A rule is a generator of what is wrong: key, problem and remedy. The first one of all is raised.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

from apa_cli.config.fields import Wrong
from apa_cli.config.keys import all_keys, nearest, not_set, shown_value
from apa_cli.config.objective_checks import objective_rules, offline_rules
from apa_cli.config.objectives import objectives
from apa_cli.config.reward_checks import check_key_name, check_rewards
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import config_dir
from apa_cli.errors import UserError

MISSING = "???"  # how OmegaConf writes a value that is not set


def _logged(config: TrainConfig) -> bool:
    return config.rollout.offline


def _adapter(config: TrainConfig) -> bool:
    return config.policy.adapter.enabled


def _critic(config: TrainConfig) -> bool:
    return config.value.kind != "none"


def _chat(config: TrainConfig) -> bool:
    return config.data.format not in ("text", "hh")


# Keys that only some settings read: which, why others do not, and the choice that does. Elsewhere a value of the
# user's would have no effect, and the run would not be the one that was meant.
_READ_BY: tuple[tuple[str, Callable[[TrainConfig], bool], str, str], ...] = (
    ("policy.adapter.dropout", _adapter, "there is no adapter", "policy=lora, or policy.adapter.r=16"),
    ("policy.adapter.target_modules", _adapter, "there is no adapter", "policy=lora, or policy.adapter.r=16"),
    ("policy.adapter.revision", lambda c: c.policy.adapter.path is not None, "policy.adapter.path is not", "it"),
    ("reference.revision", lambda c: c.reference.path is not None, "reference.path is not", "it"),
    ("value.path", lambda c: c.value.kind == "separate", "value.kind={c.value.kind} loads nothing", "value=separate"),
    ("value.revision", lambda c: c.value.path is not None, "value.path is not", "it"),
    ("value.warmup_iterations", _critic, "value.kind=none leaves no critic to train", "value=separate"),
    ("value.keep", _critic, "value.kind=none leaves no critic to train", "value=separate"),
    ("objective.value_coef", _critic, "value.kind=none leaves no critic to train", "value=separate"),
    ("objective.value_clip_range", _critic, "value.kind=none leaves no critic to train", "value=separate"),
    ("data.score_column", _logged, "it applies to logged responses", "rollout.source=offline"),
    ("data.response_column", _logged, "it applies to logged responses", "rollout.source=offline"),
    (
        "rollout.reference_cache",
        lambda c: c.rollout.offline or c.advantage.name == "reference",
        "it applies to logged responses and advantage=reference",
        "rollout.source=offline",
    ),
    ("data.system_prompt", _chat, "data.format={c.data.format} uses no chat template", "data.format=chat"),
    ("data.template_arguments", _chat, "data.format={c.data.format} uses no chat template", "data.format=chat"),
    (
        "data.prompt_template",
        lambda c: c.data.format in ("auto", "text"),
        "it applies to plain text, not to data.format={c.data.format}",
        "data.format=text",
    ),
    (
        "generation.rows",
        lambda c: c.generation.backend == "hf",
        "generation.backend={c.generation.backend} manages its own cache",
        "generation.backend=hf",
    ),
    ("advantage.gamma", lambda c: c.advantage.name == "gae", "advantage.name={c.advantage.name}", "advantage=gae"),
    ("advantage.gae_lambda", lambda c: c.advantage.name == "gae", "advantage.name={c.advantage.name}", "advantage=gae"),
    (
        "advantage.group_scale",
        lambda c: c.advantage.name != "gae",
        "advantage.name={c.advantage.name}",
        "advantage=group",
    ),
    (
        "rollout.dynamic_sampling",
        lambda c: c.advantage.name == "group",
        "advantage.name={c.advantage.name} compares no responses to a prompt",
        "objective=grpo",
    ),
)
_OF_OBJECTIVES = ("target_bound", "huber_delta", "level", "anchor", "length_divisor", "kl_target")


def check_config(config: TrainConfig) -> None:
    """Raise UserError, naming the key and what to do, for the first thing that is wrong."""
    check_fields(config)
    for rules in (_model_rules, offline_rules, _unread_rules):
        _raise_first(rules(config))
    check_rewards(config)
    for rules in (_task_rules, objective_rules, _run_rules):
        _raise_first(rules(config))
    check_key_name(config.evaluation.judge.api_key_env, "evaluation.judge.api_key_env", example="OPENAI_API_KEY")


def _raise_first(wrong: Iterator[Wrong]) -> None:
    for key, problem, remedy in wrong:
        raise UserError(key, problem, remedy)


def check_fields(config: Any, prefix: str = "") -> None:
    """Apply each field's own choices and limits, all the way down."""
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{key}.")
        elif isinstance(value, dict):
            for name, section in value.items():
                if dataclasses.is_dataclass(section):
                    check_fields(section, f"{key}.{name}.")
        elif value is not None:  # only where the annotation allows it
            _check_field(key, value, **{k: v for k, v in field.metadata.items() if k != "help"})


def _check_field(key: str, value: Any, choices: tuple[str, ...] = (), limits: dict[str, float] | None = None) -> None:
    if value == MISSING:
        raise not_set(key)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(key, f"{item} is not a finite number", "give an ordinary number")
        if item == "" or (isinstance(value, str) and not value.strip()):  # a stop string may well be a blank line
            raise UserError(key, "empty text", "give it a value, or leave it out")
    if choices and value not in choices:
        if key == "objective.name" and (config_dir() / "objective" / f"{value}.yaml").is_file():
            remedy = f"write objective={value}, in a file under defaults: `- objective: {value}`"
            raise UserError(key, f"{value} is a choice of several keys", remedy)
        near = nearest(str(value), choices)
        raise UserError(key, f"{value!r} is not a choice", f"{near} choose one of {', '.join(choices)}")
    tests: dict[str, tuple[str, Callable[[float], bool]]] = {
        "minimum": ("at least", lambda bound: value >= bound),
        "maximum": ("at most", lambda bound: value <= bound),
        "above": ("greater than", lambda bound: value > bound),
        "below": ("less than", lambda bound: value < bound),
    }
    if not all(tests[name][1](bound) for name, bound in (limits or {}).items()):
        allowed = " and ".join(f"{tests[name][0]} {bound:,g}" for name, bound in (limits or {}).items())
        raise UserError(key, f"{value:g} is out of range", f"give a number {allowed}")


def _unread_rules(config: TrainConfig) -> Iterator[Wrong]:
    """Values that nothing reads; null is a way to switch off."""
    name = config.objective.name
    for key, is_read, why, choice in _READ_BY:
        default = all_keys()[key].default
        if not is_read(config) and attrgetter(key)(config) not in (None, default):
            yield key, f"set, but {why.format(c=config)}", f"add {choice}, or {key}={shown_value(default)}"
    for leaf in _OF_OBJECTIVES:
        key = f"objective.{leaf}"
        default = all_keys()[key].default
        if leaf not in objectives()[name].reads and getattr(config.objective, leaf) != default:
            owners = [other for other, known in objectives().items() if leaf in known.reads]
            problem = f"only used by {', '.join(owners)}, but objective.name={name}"
            yield key, problem, f"add objective={owners[0]}, or set it to {shown_value(default)}"


def _model_rules(config: TrainConfig) -> Iterator[Wrong]:
    policy, adapter = config.policy, config.policy.adapter
    if adapter.r > 0 and adapter.path is not None:
        problem = f"{adapter.r}, but the trained adapter in policy.adapter.path has its own rank"
        yield "policy.adapter.r", problem, "set policy.adapter.r=0"
    if adapter.target_modules == []:
        yield "policy.adapter.target_modules", "an empty list adapts nothing", "name layers, or set it to null"
    if config.precision != "bf16":
        if (policy.attn_implementation or "").startswith("flash_attention_"):
            problem = f"{policy.attn_implementation} does not run in {config.precision}"
            yield "policy.attn_implementation", problem, "add precision=bf16"
        if policy.dtype == "bf16":
            yield "policy.dtype", f"bf16, but arithmetic is in {config.precision}", "add precision=bf16"
    if config.value.kind == "adapter" and not adapter.enabled:
        problem = "adapter, but the policy has no adapter whose base it could share"
        yield "value.kind", problem, "add policy=lora, or value=separate"


def _task_rules(config: TrainConfig) -> Iterator[Wrong]:
    """The default recipe's prompts and evaluator say nothing about another task."""
    data, judge = config.data, config.evaluation.reward
    start = "start from config=own, as a YAML file without `defaults` does"
    if not data.path.startswith("builtin:"):
        if (data.eval_path or "").startswith("builtin:"):
            problem = f"still the built-in task's prompts, while data.path={data.path}"
            yield "data.eval_path", problem, f"set it to null (rows are set aside) or to your own; or {start}"
        if any((part.function or "").startswith("apa_cli.assets.") for part in (judge, *judge.components.values())):
            problem = f"still the built-in task's evaluator, while data.path={data.path}"
            remedy = f"set it to null and evaluation.reward.kind=none, or to your own; or {start}"
            yield "evaluation.reward.function", problem, remedy
    if data.prompt_template is not None and "{prompt}" not in data.prompt_template:
        yield "data.prompt_template", "contains no {prompt}", "put {prompt} where the prompt belongs"
    own = ("conversation", "messages", "chat_template", "add_generation_prompt", "tokenize", "continue_final_message")
    for argument in sorted(data.template_arguments.keys() & set(own)):
        yield "data.template_arguments", f"{argument} is set by apa-cli", "leave it out"


def _run_rules(config: TrainConfig) -> Iterator[Wrong]:
    """Sizes, the best checkpoint, the backend and what is compiled."""
    training, stop_if, key = config.training, config.training.stop_if, "checkpoint.best_metric"
    if (metric := config.checkpoint.best_metric) is not None:
        if not metric.startswith("eval/"):
            problem = f"{metric} is not measured on held-out prompts"
            yield key, problem, "name an eval/ metric, such as eval/reward"
        if config.evaluation.prompts == 0:
            yield key, "set, but evaluation.prompts=0", f"set evaluation.prompts, or {key}=null"
        if metric.startswith("eval/evaluator") and not config.evaluation.reward.given:
            remedy = "set evaluation.reward.kind, or use eval/reward"
            yield key, f"{metric}, but there is no evaluator", remedy
    if config.generation.backend == "vllm":
        key = "generation.backend"
        if config.device == "cpu":
            yield key, "vllm needs a GPU, but device=cpu", "use generation.backend=hf"
        if find_spec("vllm") is None:
            yield key, "vllm is not installed", "pip install 'apa-cli[vllm]', or use generation.backend=hf"
    if training.compile and config.policy.gradient_checkpointing:
        problem = "compiled code decides itself what to keep, but policy.gradient_checkpointing=true"
        yield "training.compile", problem, "set training.compile or policy.gradient_checkpointing to false"
    if training.compile and config.value.kind == "adapter":
        problem = "with value.kind=adapter, policy and critic would be recompiled for each other"
        yield "training.compile", problem, "set it to false, or add value=shared"
    limited = (stop_if.kl_above, stop_if.entropy_below, stop_if.reward_below) != (None, None, None)
    for small, large in (
        ("generation.min_new_tokens", "generation.max_new_tokens"),
        ("training.minibatch_size", "rollout.batch_size"),
        ("optimizer.warmup_iterations", "training.iterations"),
        *([("training.stop_if.patience", "training.iterations")] if limited else []),
    ):
        value, bound = attrgetter(small)(config), attrgetter(large)(config)
        if value > bound:
            yield small, f"{value} is more than {large}={bound}", f"lower {small} or raise {large}"
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        remedy = "give two numbers from 0 up to but not including 1, such as [0.9,0.95]"
        yield "optimizer.betas", f"{betas} is not a pair of decay rates", remedy
