"""The memory that a run needs: weights, gradients and optimizer states to the byte, everything else as an estimate.

The models are built on torch's meta device, without data. A run whose weights cannot fit is refused before any are
loaded. The estimate follows once the lengths of the prompts are known.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt
from apa_cli.errors import UserError
from apa_cli.models.adapter_loading import attach_adapter, attach_value_adapter
from apa_cli.models.adapters import REFERENCE_ADAPTER, VALUE_ADAPTER
from apa_cli.models.device import Runtime, model_dtype, trained_dtype
from apa_cli.models.loading import first_line, load_causal_config
from apa_cli.models.policy import base_of
from apa_cli.models.value import ValueHead, hidden_size
from apa_cli.rewards.classifier import classifier_config
from apa_cli.rewards.preview import planned_readings
from apa_cli.secrets import redact_text
from apa_cli.training.memory_estimate import Estimate, estimates

SMALLEST_8BIT, BLOCK_8BIT = 4096, 256  # bitsandbytes: numbers in the smallest tensor it quantises, and in a block

Say = Callable[[str], None]


class Role(NamedTuple):
    """One model of the run. Weights it shares with another role are counted there."""

    name: str
    weights: str  # where they come from
    parameters: int = 0
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
    models: tuple[Any, ...]  # on the meta device: the policy, and a critic with a transformer of its own
    device: str
    available_bytes: int | None  # None where the system does not say
    estimates: Sequence[Estimate] = ()

    @property
    def certain_bytes(self) -> int:
        """Weights, gradients and optimizer states: held together in an optimizer step."""
        return sum(role.bytes for role in self.roles.values())

    @property
    def expected_bytes(self) -> int:
        """Weights and optimizer states, plus the largest estimate."""
        held = sum(role.bytes - role.gradient_bytes for role in self.roles.values())
        return max(self.certain_bytes, *(held + estimate.bytes for estimate in self.estimates), 0)


def show_plan(config: TrainConfig, runtime: Runtime) -> None:
    """`plan_only`: print the plan and the first prompt as each model reads it. Raises UserError if it cannot fit."""

    def note(line: str) -> None:
        print(redact_text(line), flush=True)

    with warnings.catch_warnings():  # of libraries
        warnings.simplefilter("ignore")
        plan = announce_models(config, runtime, note)
        prompts: Sequence[Prompt] | None = None
        try:
            prompts, lines = planned_readings(config, runtime)
        except UserError:
            raise
        except Exception as error:  # a model's own code may fail in any way without weights
            lines = [f"what the models read is not shown ({type(error).__name__}: {first_line(error)})"]
        for line in lines:
            note(line)
        announce_estimates(
            plan, config, runtime, prompts, note, lambda line: print(f"warning: {line}", file=sys.stderr)
        )


def announce_models(config: TrainConfig, runtime: Runtime, note: Say) -> Plan | None:
    """Report the size of each role. Raises UserError if they cannot fit; a run may use a model that hides its sizes."""
    try:
        plan = make_plan(config, runtime)
    except UserError:
        raise
    except Exception as error:  # a model's own code may fail in any way
        problem = f"{type(error).__name__}: {first_line(error)}"
        if config.plan_only:
            problem = f"the models cannot be planned ({problem})"
            raise UserError("plan_only", problem, "check their config.json files") from error
        note(f"no plan of the memory ({problem})")
        return None
    for line in role_lines(plan):
        note(line)
    check_fits(plan, config)
    return plan


def announce_estimates(
    plan: Plan | None, config: TrainConfig, runtime: Runtime, prompts: Sequence[Prompt] | None, note: Say, warn: Say
) -> None:
    """Report what sampling and the update need for these prompts, and warn if memory may not suffice."""
    if plan is None:
        return
    try:
        if prompts is not None:
            plan = with_estimates(plan, config, runtime, prompts)
    except Exception as error:
        note(f"no estimate of what the update needs ({type(error).__name__}: {first_line(error)})")
    for estimate in plan.estimates:
        note(f"{estimate.name:<10} about {gib(estimate.bytes)}: {estimate.of}")
    free = "unknown" if plan.available_bytes is None else f"{gib(plan.available_bytes)} free"
    total = f"models {gib(plan.certain_bytes)}, at most about {gib(plan.expected_bytes)}"
    note(f"{'memory':<10} {total}; {plan.device}: {free}")
    if warning := doubt(plan):
        warn(warning)


def check_fits(plan: Plan, config: TrainConfig) -> None:
    """Raise UserError if weights, gradients and optimizer states alone exceed the free memory."""
    if plan.available_bytes is None or plan.certain_bytes <= plan.available_bytes:
        return
    full = not config.policy.adapter.enabled
    remedies = {  # the most effective first
        "add policy=lora (one frozen copy of the weights serves policy and reference)": full,
        "value=shared (no second network)": config.value.kind == "separate",
        "optimizer.name=adamw_8bit (optimizer states at a quarter of the size)": full
        and config.optimizer.name == "adamw",
        "precision=bf16 (frozen weights at half the size)": config.precision == "fp32",
    }
    largest = max(plan.roles.values(), key=lambda role: role.bytes)
    problem = (
        f"weights, gradients and optimizer states take {gib(plan.certain_bytes)}, and {gib(plan.available_bytes)} are "
        f"free on {plan.device}; the largest part is the {largest.name} with {gib(largest.bytes)}"
    )
    helpful = [remedy for remedy, helps in remedies.items() if helps]
    raise UserError("policy.path", problem, ", ".join([*helpful, "or a smaller model"]))


def doubt(plan: Plan) -> str | None:
    """A warning if the estimates exceed the free memory."""
    if plan.available_bytes is None or plan.expected_bytes <= plan.available_bytes:
        return None
    most = max(plan.estimates, key=lambda estimate: estimate.bytes)
    return (
        f"about {gib(plan.expected_bytes)} may be needed, most of it beyond the models for {most.name}, and "
        f"{gib(plan.available_bytes)} are free on {plan.device}: if memory runs out, lower training.microbatch_tokens "
        "or rollout.batch_size, or set policy.gradient_checkpointing=true"
    )


def role_lines(plan: Plan) -> list[str]:
    """The roles as an aligned table."""
    rows: list[tuple[str, ...]] = [("role", "parameters", "trained", "weights", "gradients", "optimizer", "from")]
    for role in plan.roles.values():
        counts = [f"{number:,}" if number else "–" for number in (role.parameters, role.trained)]
        sizes = [gib(b) if b else "–" for b in (role.parameter_bytes, role.gradient_bytes, role.optimizer_bytes)]
        rows.append((role.name, *counts, *sizes, role.weights))
    widths = [max(10, *map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([n.ljust(widths[0]), *map(str.rjust, numbers, widths[1:]), of]) for n, *numbers, of in rows]


def gib(number: float) -> str:
    """3.0 GiB, 12 MiB, 0.3 KiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if number >= size:
            return f"{number / size:.1f} {unit}" if number < 10 * size else f"{number / size:,.0f} {unit}"
    return f"{number / 1024:.1f} KiB"


def make_plan(config: TrainConfig, runtime: Runtime) -> Plan:
    """The roles without estimates. Raises UserError for a model whose configuration cannot be read."""
    with torch.device("meta"):
        given = config.policy
        dtype = model_dtype(given, runtime)
        policy = _build("policy.path", given.path, dtype, config, given.revision)
        if given.adapter.enabled:
            policy = attach_adapter(policy, given, None)
            if config.value.kind == "adapter":
                attach_value_adapter(policy, given, None)
        models = [base_of(policy)]
        frozen = ", frozen, with an adapter" if given.adapter.enabled else ""
        own = _weights(policy, REFERENCE_ADAPTER, VALUE_ADAPTER, without=True)
        roles = [
            _role("policy", f"{given.path}{frozen}", own, config.optimizer.name),
            _reference(config, dtype, policy),
            _value(config, policy, models),
            *_rewards(config, runtime),
        ]
    return Plan(
        roles={role.name: role for role in roles},
        models=tuple(models),
        device=runtime.describe(),
        available_bytes=runtime.available_bytes(),
    )


def with_estimates(plan: Plan, config: TrainConfig, runtime: Runtime, prompts: Sequence[Prompt]) -> Plan:
    """The plan with what sampling and the update need for prompts of these lengths."""
    gradients = plan.roles["policy"].gradient_bytes, plan.roles["value"].gradient_bytes
    return replace(plan, estimates=estimates(plan.models, gradients, config, runtime, prompts))


def _reference(config: TrainConfig, dtype: torch.dtype, policy: Any) -> Role:
    if (path := config.reference.path) is not None:
        model = _build("reference.path", path, dtype, config, config.reference.revision)
        return _role("reference", path, model.parameters())
    if config.policy.adapter.path is not None:
        return _role("reference", "the policy's, adapter as it started", _weights(policy, REFERENCE_ADAPTER))
    if config.policy.adapter.enabled:
        return Role("reference", "the policy's, adapter off")
    return _role("reference", "a frozen copy of the policy", policy.parameters())


def _value(config: TrainConfig, policy: Any, models: list[Any]) -> Role:
    """The critic. Its own transformer, if it has one, is added to `models`."""
    given, weights = config.value, "a head on the policy"
    own: list[nn.Parameter] = []
    if given.kind == "none":
        against = "with the initial policy's" if config.advantage.name == "reference" else "with each other"
        return Role("value", f"none: the responses to a prompt are compared {against}")
    if given.kind == "separate":
        key, path, revision = "policy.path", config.policy.path, config.policy.revision
        if given.path is not None:
            key, path, revision = "value.path", given.path, given.revision
        weights = f"a network of its own, from {given.path or 'the policy'}"
        models.append(_build(key, path, trained_dtype(config.policy), config, revision, AutoModel))
        own = list(models[-1].parameters())
    elif given.kind == "adapter":
        weights = "the policy's base, an adapter and a head of its own"
        own = _weights(policy, VALUE_ADAPTER)
        for parameter in own:
            parameter.requires_grad_()
    own += ValueHead(hidden_size(models[-1])).parameters()
    return _role("value", weights, own, config.optimizer.name)


def _rewards(config: TrainConfig, runtime: Runtime) -> Iterator[Role]:
    """A model that several rewards name is counted with the first."""
    if not config.needs_reward:
        yield Role("reward", "none: scores are logged, and nothing is evaluated")
    holders: dict[tuple[str | None, str | None], str] = {}
    for name, key, one in config.scorers():
        if one.kind != "model" or one.path is None:
            yield Role(name, f"none: {one.source}")
        elif (holder := holders.setdefault((one.path, one.revision), name)) != name:
            yield Role(name, f"those of {holder}")
        else:
            shape = classifier_config(one.path, one.revision, f"{key}.path")
            options = {"dtype": runtime.frozen_dtype, "trust_remote_code": False}
            model = AutoModelForSequenceClassification.from_config(shape, **options)
            yield _role(name, one.path, model.parameters())


def _build(
    key: str, path: str, dtype: torch.dtype, config: TrainConfig, revision: str | None, auto: Any = AutoModelForCausalLM
) -> Any:
    trust = config.policy.trust_remote_code and path == config.policy.path
    model_config = load_causal_config(key, path, revision=revision, trust_remote_code=trust)
    return auto.from_config(model_config, dtype=dtype, trust_remote_code=trust)


def _weights(model: Any, *adapters: str, without: bool = False) -> list[nn.Parameter]:
    """The parameters of these adapters, or all others."""
    return [p for name, p in model.named_parameters() if set(adapters).isdisjoint(name.split(".")) == without]


def _role(name: str, weights: str, parameters: Iterable[nn.Parameter], optimizer: str | None = None) -> Role:
    """Without an optimizer nothing is trained."""
    own = list(parameters)
    trained = [p for p in own if p.requires_grad and optimizer is not None]
    sizes = sum(p.nbytes for p in own), sum(p.nbytes for p in trained), sum(_state_bytes(p, optimizer) for p in trained)
    return Role(name, weights, sum(p.numel() for p in own), sum(p.numel() for p in trained), *sizes)


def _state_bytes(weight: nn.Parameter, optimizer: str | None) -> int:
    """Of AdamW's two moments. Quantised they take a byte per number, and each block a float32 scale."""
    count = weight.numel()
    if optimizer == "adamw_8bit" and count >= SMALLEST_8BIT:
        return 2 * (count + 4 * -(-count // BLOCK_8BIT))
    return 2 * count * (4 if optimizer == "adamw_8bit" else weight.element_size())
