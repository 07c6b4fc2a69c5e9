"""What a run will hold in memory: weights, gradients and optimizer states to the byte, the rest as an estimate.

Every role is built from its configuration alone, on torch's meta device, where tensors have shapes and no numbers.
Weights that cannot fit are refused before any are loaded; the estimate follows when the prompts' lengths are known.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from apa_cli.config.schema import ScorerConfig, TrainConfig
from apa_cli.data.prompts import Prompt
from apa_cli.errors import UserError
from apa_cli.models.adapter_loading import attach_adapter, attach_value_adapter
from apa_cli.models.adapters import REFERENCE_ADAPTER, VALUE_ADAPTER
from apa_cli.models.device import Runtime, model_dtype, trained_dtype
from apa_cli.models.loading import first_line, load_causal_config
from apa_cli.models.memory import available_bytes
from apa_cli.models.value import ValueHead, hidden_size
from apa_cli.rewards.classifier import classifier_config
from apa_cli.rewards.preview import planned_readings
from apa_cli.secrets import redact_text
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.memory_estimate import Estimate, estimates

SMALLEST_8BIT, BLOCK_8BIT = 4096, 256  # bitsandbytes: numbers in a tensor from which it quantises, and by block


class Role(NamedTuple):
    """One model of the run. What it borrows from another role is counted there."""

    name: str
    weights: str  # whose
    parameters: int = 0  # of its own
    trained: int = 0
    parameter_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    roles: dict[str, Role]
    models: tuple[Any, ...]  # the policy, and a critic with a transformer of its own, on the meta device
    device: str
    available_bytes: int | None  # None where the system does not say
    estimates: Sequence[Estimate] = ()

    @property
    def certain_bytes(self) -> int:
        """Weights, gradients and optimizer states: what an optimizer step holds."""
        return sum(role.bytes for role in self.roles.values())

    @property
    def expected_bytes(self) -> int:
        """Weights and optimizer states, with the largest of what is needed in turn."""
        held = sum(role.bytes - role.gradient_bytes for role in self.roles.values())
        return max(self.certain_bytes, *(held + estimate.bytes for estimate in self.estimates), 0)


def show_plan(config: TrainConfig, runtime: Runtime) -> None:
    """`plan_only`: the plan and the first prompt as it is read. Raises UserError for what cannot fit."""
    with warnings.catch_warnings():  # of libraries about one another: a run sends them to run.log
        warnings.simplefilter("ignore")
        try:
            plan = make_plan(config, runtime)
        except UserError:
            raise
        except Exception as error:
            problem = f"the models cannot be planned ({type(error).__name__}: {error})"
            raise UserError("plan_only", " ".join(problem.split())[:300], "check their config.json files") from error
        print("\n".join(role_lines(plan)), flush=True)
        check_fits(plan, config)
        try:
            prompts, lines = planned_readings(config, runtime)
            plan = with_estimates(plan, config, runtime, prompts)
        except UserError:
            raise
        except Exception as error:  # a model's own code may do anything without weights
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            lines = [f"what the models read, or need to compute, is not shown ({problem})"]
    print(redact_text("\n".join([*lines, *estimate_lines(plan)])))
    if warning := doubt(plan):
        print(f"warning: {warning}", file=sys.stderr)


def announce_models(config: TrainConfig, runtime: Runtime, tracker: Tracker) -> Plan | None:
    """Say what will be held where, and refuse what cannot be. A model that hides its sizes is not refused."""
    try:
        plan = make_plan(config, runtime)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # if it is the user's to mend, loading says so; a model's own code may do anything
        tracker.note(f"no plan of the memory ({type(error).__name__}: {first_line(error)})")
        return None
    for line in role_lines(plan):
        tracker.note(line)
    check_fits(plan, config)
    return plan


def announce_estimates(
    plan: Plan | None, config: TrainConfig, runtime: Runtime, prompts: Sequence[Prompt], tracker: Tracker
) -> None:
    """Say what sampling and the update need for these prompts, and warn where it may be more than there is."""
    if plan is None:
        return
    try:
        plan = with_estimates(plan, config, runtime, prompts)
    except Exception as error:
        tracker.note(f"no estimate of what the update needs ({type(error).__name__}: {first_line(error)})")
    for line in estimate_lines(plan):
        tracker.note(line)
    if warning := doubt(plan):
        tracker.warn(warning)


def make_plan(config: TrainConfig, runtime: Runtime) -> Plan:
    """The roles. Raises UserError for a model whose configuration cannot be read."""
    with torch.device("meta"):
        policy = _policy(config, runtime)
        adapted = config.policy.adapter.enabled
        models = [policy.get_base_model() if adapted else policy]
        own = [(name, p) for name, p in policy.named_parameters() if not _is_of(name, REFERENCE_ADAPTER, VALUE_ADAPTER)]
        whose = f"{config.policy.path}{', frozen, with an adapter' if adapted else ''}"
        roles = [_role("policy", whose, own, config.optimizer.name), _reference(config, runtime, policy)]
        roles += [_value(config, policy, models), *_rewards(config, runtime)]
    return Plan(
        roles={role.name: role for role in roles},
        models=tuple(models),
        device=runtime.describe(),
        available_bytes=available_bytes(runtime.device),
    )


def with_estimates(plan: Plan, config: TrainConfig, runtime: Runtime, prompts: Sequence[Prompt]) -> Plan:
    """Also with what sampling and the update need for prompts as long as these."""
    gradients = plan.roles["policy"].gradient_bytes, plan.roles["value"].gradient_bytes
    return replace(plan, estimates=estimates(plan.models, gradients, config, runtime, prompts))


def check_fits(plan: Plan, config: TrainConfig) -> None:
    """Raise UserError where weights, gradients and optimizer states alone are more than there is."""
    if plan.available_bytes is None or plan.certain_bytes <= plan.available_bytes:
        return
    largest = max(plan.roles.values(), key=lambda role: role.bytes)
    problem = f"weights, gradients and optimizer states take {gib(plan.certain_bytes)}, and there are "
    problem += f"{gib(plan.available_bytes)} free on {plan.device}; the largest part is the {largest.name} with "
    raise UserError("policy.path", problem + gib(largest.bytes), ", ".join([*remedies(config), "or a smaller model"]))


def remedies(config: TrainConfig) -> list[str]:
    """What would make the certain part smaller, the most effective first."""
    full = not config.policy.adapter.enabled
    helps = {
        "add policy=lora (one frozen copy of the weights serves policy and reference)": full,
        "value=shared (no second network)": config.value.kind == "separate",
        "optimizer.name=adamw_8bit (optimizer states at a quarter of the size)": full
        and config.optimizer.name == "adamw",
        "precision=bf16 (frozen weights at half the size)": config.precision == "fp32",
    }
    return [remedy for remedy, left in helps.items() if left]


def doubt(plan: Plan) -> str | None:
    """What to warn of, where estimates say that memory may not do."""
    if plan.available_bytes is None or plan.expected_bytes <= plan.available_bytes:
        return None
    most = max(plan.estimates, key=lambda estimate: estimate.bytes)
    return (
        f"about {gib(plan.expected_bytes)} may be needed, most of it beyond the models for {most.name}, and there are "
        f"{gib(plan.available_bytes)} free on {plan.device}: should memory run out, lower training.microbatch_tokens "
        "or rollout.batch_size, or set policy.gradient_checkpointing=true"
    )


# --- the roles -------------------------------------------------------------------------------------------------------


def _policy(config: TrainConfig, runtime: Runtime) -> Any:
    given, dtype = config.policy, model_dtype(config.policy, runtime)
    model = _build("AutoModelForCausalLM", "policy.path", given.path, dtype, config, given.revision)
    if given.adapter.enabled:
        model = attach_adapter(model, given, None)
        if config.value.kind == "adapter":
            attach_value_adapter(model, given, None)
    return model


def _reference(config: TrainConfig, runtime: Runtime, policy: Any) -> Role:
    given = config.reference
    if given.path is not None:
        dtype = model_dtype(config.policy, runtime)
        own = _build("AutoModelForCausalLM", "reference.path", given.path, dtype, config, given.revision)
        return _role("reference", given.path, own.named_parameters())
    if config.policy.adapter.path is not None:
        start = [(name, p) for name, p in policy.named_parameters() if _is_of(name, REFERENCE_ADAPTER)]
        return _role("reference", "the policy's, adapter as it started", start)
    if config.policy.adapter.enabled:
        return Role("reference", "the policy's, adapter off")
    return _role("reference", "a frozen copy of the policy", policy.named_parameters())


def _value(config: TrainConfig, policy: Any, models: list[Any]) -> Role:
    """The critic; a transformer of its own joins `models`."""
    given, optimizer = config.value, config.optimizer.name
    if given.kind == "none":
        return Role("value", "none: the responses to a prompt are compared")
    if given.kind == "separate":
        key, path, revision = "policy.path", config.policy.path, config.policy.revision
        if given.path is not None:
            key, path, revision = "value.path", given.path, given.revision
        models.append(_build("AutoModel", key, path, trained_dtype(config.policy), config, revision))
    head = list(ValueHead(hidden_size(models[-1])).named_parameters())
    if given.kind == "separate":
        own = [*models[-1].named_parameters(), *head]
        return _role("value", f"a network of its own, from {given.path or 'the policy'}", own, optimizer)
    if given.kind == "shared":
        return _role("value", "a head on the policy", head, optimizer)
    adapter = [(name, p.requires_grad_()) for name, p in policy.named_parameters() if _is_of(name, VALUE_ADAPTER)]
    return _role("value", "the policy's base, an adapter and a head of its own", [*adapter, *head], optimizer)


def _rewards(config: TrainConfig, runtime: Runtime) -> list[Role]:
    """Of a model that several name, the first holds the weights."""
    roles = [] if config.needs_reward else [Role("reward", "none: scores are logged, and nothing is evaluated")]
    holders: dict[tuple[str | None, str | None], str] = {}
    for name, key, one in config.scorers():
        model = (one.path, one.revision)
        if one.kind != "model":
            roles.append(Role(name, f"none: {one.source}"))
        elif model in holders:
            roles.append(Role(name, f"those of {holders[model]}"))
        else:
            roles.append(_scorer(name, f"{key}.path", one, runtime))
            holders[model] = name
    return roles


def _scorer(name: str, key: str, config: ScorerConfig, runtime: Runtime) -> Role:
    from transformers import AutoModelForSequenceClassification

    assert config.path is not None
    model = AutoModelForSequenceClassification.from_config(
        classifier_config(config.path, config.revision, key), dtype=runtime.frozen_dtype, trust_remote_code=False
    )
    return _role(name, config.path, model.named_parameters())


def _build(auto_class: str, key: str, path: str, dtype: torch.dtype, config: TrainConfig, revision: str | None) -> Any:
    import transformers

    options: dict[str, Any] = {"trust_remote_code": config.policy.trust_remote_code and path == config.policy.path}
    model_config = load_causal_config(key, path, revision=revision, **options)
    return getattr(transformers, auto_class).from_config(model_config, dtype=dtype, **options)


def _is_of(name: str, *adapters: str) -> bool:
    return bool(set(adapters) & set(name.split(".")))


def _role(name: str, weights: str, parameters: Any, optimizer: str | None = None) -> Role:
    """Of named parameters, each counted once however many names it has; without an optimizer none is trained."""
    own = [p for _, p in parameters]
    trained = [p for p in own if p.requires_grad and optimizer is not None]
    return Role(
        name=name,
        weights=weights,
        parameters=sum(p.numel() for p in own),
        trained=sum(p.numel() for p in trained),
        parameter_bytes=sum(p.nbytes for p in own),
        gradient_bytes=sum(p.nbytes for p in trained),
        optimizer_bytes=sum(_state_bytes(p, optimizer) for p in trained),
    )


def _state_bytes(weight: nn.Parameter, optimizer: str | None) -> int:
    """Of AdamW's two moments; quantised, a byte each and for each block its float32 scale."""
    count = weight.numel()
    if optimizer == "adamw_8bit" and count >= SMALLEST_8BIT:
        return 2 * (count + 4 * -(-count // BLOCK_8BIT))
    return 2 * count * (4 if optimizer == "adamw_8bit" else weight.element_size())


# --- for people ------------------------------------------------------------------------------------------------------


def role_lines(plan: Plan) -> list[str]:
    """A table of the roles."""
    rows: list[tuple[str, ...]] = [("role", "parameters", "trained", "weights", "gradients", "optimizer", "whose")]
    for role in plan.roles.values():
        numbers = [f"{number:,}" if number else "–" for number in (role.parameters, role.trained)]
        numbers += [
            gib(size) if size else "–" for size in (role.parameter_bytes, role.gradient_bytes, role.optimizer_bytes)
        ]
        rows.append((role.name, *numbers, role.weights))
    widths = [max(10, *map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([n.ljust(widths[0]), *map(str.rjust, numbers, widths[1:]), whose]) for n, *numbers, whose in rows]


def estimate_lines(plan: Plan) -> list[str]:
    """What is needed for a while, and the sum against what there is."""
    lines = [f"{estimate.name:<10} about {gib(estimate.bytes)}: {estimate.of}" for estimate in plan.estimates]
    free = "unknown" if plan.available_bytes is None else f"{gib(plan.available_bytes)} free"
    total = f"models {gib(plan.certain_bytes)}, at the most about {gib(plan.expected_bytes)}"
    return [*lines, f"{'memory':<10} {total}; {plan.device}: {free}"]


def gib(number: float) -> str:
    """3.0 GiB, 12 MiB, 0.3 KiB."""
    for unit in ("GiB", "MiB"):
        size = 1 << (30 if unit == "GiB" else 20)
        if number >= size:
            return f"{number / size:.1f} {unit}" if number < 10 * size else f"{number / size:,.0f} {unit}"
    return f"{number / 1024:.1f} KiB"
