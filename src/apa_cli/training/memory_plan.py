"""The memory that a run needs: weights, gradients and optimizer states, and an estimate of everything else.

The models are built on torch's meta device, where tensors have shapes but no data. A run whose weights cannot fit is
refused before any are loaded. Once the lengths of the prompts are known, a forward pass on that device shows what the
update keeps for backward and how large a KV cache becomes, whatever the architecture.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from apa_cli.algorithms.head import KEEP_BYTES
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt
from apa_cli.errors import UserError
from apa_cli.models.adapter_loading import attach_adapter, attach_value_adapter
from apa_cli.models.adapters import REFERENCE_ADAPTER, VALUE_ADAPTER
from apa_cli.models.device import Runtime, model_dtype, trained_dtype
from apa_cli.models.layout import rows_of_groups
from apa_cli.models.loading import first_line
from apa_cli.models.microbatches import padded_shape, plan_microbatches, rows_at_once
from apa_cli.models.policy import base_of
from apa_cli.models.unloaded import cache_bytes, kept_bytes, unloaded_model
from apa_cli.models.value import ValueHead, hidden_size
from apa_cli.rewards.classifier import classifier_config
from apa_cli.rewards.preview import planned_readings
from apa_cli.secrets import redact_text

DRAWS = 50  # batches drawn from the prompts to find how large they get
LOGIT_COPIES = 3  # float32 logits of one generation step: as sampled, for the log-prob, for the entropy
BF16_SHARE = 0.625  # of the float32 activations: under autocast norms still compute and keep float32
PASSING = 0.5  # of what a layer keeps for backward: the most it holds at a time without a backward
HEAP = {"cpu": 1.4, "cuda": 1.0}  # resident bytes per byte of tensors, measured: glibc's heap has holes

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


class Estimate(NamedTuple):
    """What one phase of an iteration needs beyond weights and optimizer states."""

    name: str
    bytes: int
    of: str


@dataclass(frozen=True)
class Plan:
    roles: dict[str, Role]
    models: Sequence[Any]  # on the meta device: the policy, and a critic with a transformer of its own
    device: str
    available_bytes: int | None  # None where the system does not say
    process_bytes: int = 0  # resident already: Python and its libraries
    estimates: Sequence[Estimate] = ()
    packed: bool = True  # the models compute the prompt of a group once, as most do

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
        prompts, lines = planned_readings(config, runtime)
        for line in lines:
            note(line)
        if plan is not None:
            announce_estimates(plan, config, runtime, prompts, note, lambda line: note(f"warning: {line}"))


def announce_models(config: TrainConfig, runtime: Runtime, note: Say) -> Plan | None:
    """Report the size of each role. Raises UserError if they cannot fit; a run may use a model that hides its sizes."""
    try:
        plan = make_plan(config, runtime)
    except UserError:
        raise
    except Exception as error:  # a model's own code may fail in any way
        note(f"no plan of the memory ({type(error).__name__}: {first_line(error)})")
        return None
    row = "{:<10}  {:>14}  {:>13}  {:>10}  {:>10}  {:>10}  {}"
    note(row.format("role", "parameters", "trained", "weights", "gradients", "optimizer", "from"))
    for name, weights, *counts, parameters, gradients, states in plan.roles.values():
        sizes = [gib(number) if number else "–" for number in (parameters, gradients, states)]
        note(row.format(name, *(f"{number:,}" if number else "–" for number in counts), *sizes, weights))
    if plan.available_bytes is not None and plan.certain_bytes > plan.available_bytes:
        largest = max(plan.roles.values(), key=lambda role: role.bytes)
        problem = (
            f"weights, gradients and optimizer states take {gib(plan.certain_bytes)}, and {gib(plan.available_bytes)} "
            f"are free on {plan.device}; the largest part is the {largest.name} with {gib(largest.bytes)}"
        )
        remedy = "add policy=lora, value=shared, optimizer.name=adamw_8bit, precision=bf16, or take a smaller model"
        raise UserError("policy.path", problem, remedy)
    return plan


def announce_estimates(
    plan: Plan, config: TrainConfig, runtime: Runtime, prompts: Sequence[Prompt], note: Say, warn: Say
) -> None:
    """Report what sampling and the update need for these prompts, and warn if memory may not suffice."""
    try:
        plan = with_estimates(plan, config, runtime, prompts)
    except Exception as error:
        note(f"no estimate of what the update needs ({type(error).__name__}: {first_line(error)})")
    for estimate in plan.estimates:
        note(f"{estimate.name:<10} about {gib(estimate.bytes)}: {estimate.of}")
    available, expected, process = plan.available_bytes, plan.expected_bytes, plan.process_bytes
    libraries = f", {gib(process)} of it Python and libraries" if process else ""
    total = f"models {gib(plan.certain_bytes)}, at most about {gib(process + expected)}{libraries}"
    note(f"{'memory':<10} {total}; {plan.device}: {'unknown' if available is None else f'{gib(available)} free'}")
    if plan.estimates and available is not None and expected > available:
        warn(
            f"about {gib(expected)} may be needed, and {gib(available)} are free on {plan.device}: if memory runs out, "
            "lower training.microbatch_tokens or rollout.batch_size, or set policy.gradient_checkpointing=true"
        )


def gib(number: float) -> str:
    """3.0 GiB, 12 MiB."""
    size, unit = (1 << 30, "GiB") if number >= 1 << 30 else (1 << 20, "MiB")
    return f"{number / size:,.{int(number < 10 * size)}f} {unit}"


def make_plan(config: TrainConfig, runtime: Runtime) -> Plan:
    """The roles without estimates. Raises UserError for a model whose configuration cannot be read."""
    roles, models = dict[str, Role](), list[Any]()
    given, value, dtype = config.policy, config.value, model_dtype(config.policy, runtime)

    def build(key: str, source: Any, dtype: torch.dtype, auto: Any = None) -> Any:
        trust = given.trust_remote_code and source.path == given.path
        revision = source.revision
        return unloaded_model(key, source.path, dtype=dtype, auto=auto, revision=revision, trust_remote_code=trust)

    def add(name: str, origin: str, held: Sequence[Any] = (), trained: Sequence[Any] = ()) -> None:
        (n, size), (learnt, gradients) = (
            (sum(p.numel() for p in own), sum(p.nbytes for p in own)) for own in (held, trained)
        )
        states = 2 * (learnt if config.optimizer.name == "adamw_8bit" else gradients)  # AdamW's two numbers for each
        roles[name] = Role(name, origin, n, learnt, size, gradients, states)

    with torch.device("meta"):
        policy = build("policy.path", given, dtype)
        if given.adapter.enabled:
            policy = attach_adapter(policy, given, None)
            if value.kind == "adapter":
                attach_value_adapter(policy, given, None)
        models.append(base_of(policy))
        weights: dict[str, list[Any]] = {VALUE_ADAPTER: [], REFERENCE_ADAPTER: [], "policy": []}
        for name, weight in policy.named_parameters():
            parts = {VALUE_ADAPTER, REFERENCE_ADAPTER} & {*name.split(".")}
            weights[parts.pop() if parts else "policy"].append(weight)
        own = weights["policy"]
        trained = [weight for weight in own if weight.requires_grad]
        add("policy", f"{given.path}{', frozen, with an adapter' * given.adapter.enabled}", own, trained)

        if config.reference.path is not None:
            own = [*build("reference.path", config.reference, dtype).parameters()]
            add("reference", config.reference.path, own)
        elif given.adapter.enabled:
            started = "off" if given.adapter.path is None else "as it started"
            add("reference", f"the policy's, adapter {started}", weights[REFERENCE_ADAPTER])
        else:
            add("reference", "a frozen copy of the policy", own)

        critic, origin = weights[VALUE_ADAPTER], "none"
        if value.kind == "separate":
            key, source = ("policy.path", given) if value.path is None else ("value.path", value)
            origin = f"a network of its own, from {value.path or 'the policy'}"
            models.append(build(key, source, trained_dtype(given), AutoModel))
            critic = [*models[-1].parameters()]
        elif value.kind != "none":
            origin = "the policy's base, an adapter and a head of its own" if critic else "a head on the policy"
        if value.kind != "none":
            critic += ValueHead(hidden_size(models[-1])).parameters()
        add("value", origin, critic, critic)

        if not config.needs_reward:
            add("reward", "none: scores are logged, and nothing is evaluated")
        holders: dict[tuple[str | None, str | None], str] = {}
        for name, key, one in config.scorers():
            if one.kind != "model" or one.path is None:
                add(name, f"none: {one.source}")
            elif (holder := holders.setdefault((one.path, one.revision), name)) != name:
                add(name, f"those of {holder}")
            else:
                shape = classifier_config(one.path, one.revision, f"{key}.path")
                model = AutoModelForSequenceClassification.from_config(shape, dtype=runtime.frozen_dtype)
                add(name, one.path, [*model.parameters()])
        for model in models:
            model.float().eval()  # the meta device has no autocast
    return Plan(roles, models, runtime.describe(), runtime.available_bytes(), runtime.resident_bytes())


def with_estimates(plan: Plan, config: TrainConfig, runtime: Runtime, prompts: Sequence[Prompt]) -> Plan:
    """The plan with what sampling and the update need for prompts and logged responses of these lengths."""
    estimates = [part(plan, config, runtime, prompts) for part in (_generation, _update)]
    return replace(plan, estimates=[estimate for estimate in estimates if estimate.bytes])


def _generation(plan: Plan, config: TrainConfig, runtime: Runtime, prompts: Sequence[Prompt]) -> Estimate:
    """The KV cache, and beside it a step's logits."""
    model, T, device = plan.models[0], config.generation.max_new_tokens, runtime.device.type
    rows = config.evaluation.prompts if config.rollout.offline else config.rollout.batch_size
    rows = rows_at_once(config.generation.rows, rows, device) if config.generation.backend == "hf" else rows
    P = max(len(prompt.token_ids) for prompt in prompts)
    token = cache_bytes(model) / (2 if runtime.bf16 else 1)
    logits = LOGIT_COPIES * rows * int(model.config.get_text_config().vocab_size) * 4
    of = f"KV cache and logits, {rows} × up to {P} + {T} tokens{', to evaluate' if config.rollout.offline else ''}"
    return Estimate("generation", int((token * rows * (P + T) + logits) * HEAP[device]), of)


def _largest_microbatch(plan: Plan, config: TrainConfig, device: str, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Rows of the update's largest micro-batch, their tokens, responses and longest response, in batches drawn."""
    T, k, draw, found = config.generation.max_new_tokens, config.shuffled_together, random.Random(0), []
    budget, packed = config.training.microbatch_tokens, None
    for _ in range(DRAWS):
        rows = [row for row in draw.choices(prompts, k=config.training.minibatch_size // k) for _ in range(k)]
        asked = [len(row.token_ids) for row in rows]
        answers = [T if row.logged is None else len(row.logged.token_ids) for row in rows]
        if plan.packed and k > 1:
            width = hidden_size(plan.models[0])
            packed = rows_of_groups(torch.tensor(asked), torch.tensor(answers), k, width=width).tolist()
        for part in plan_microbatches(asked, answers, budget, packed=packed, device_type=device):
            n, L = padded_shape(asked, answers, part, packed)
            found.append((n * L, n, L, len(part), max(answers[i] for i in part)))
    return max(found)[1:]


def _update(plan: Plan, config: TrainConfig, runtime: Runtime, prompts: Sequence[Prompt]) -> Estimate:
    """The largest of the policy's backward, a separate critic's backward after it, and the optimizer step."""
    rows, length, responses, longest = _largest_microbatch(plan, config, runtime.device.type, prompts)
    kept = []
    for model in plan.models:
        layers, tokens = model.config.get_text_config().num_hidden_layers, rows * length
        whole = kept_bytes(model, rows, length) * (BF16_SHARE if runtime.bf16 else 1)
        layer = whole / layers
        if config.policy.gradient_checkpointing:  # the residual stream into each layer and the last norm, and one layer
            element = 2 if runtime.bf16 and config.policy.adapter.enabled else 4
            whole = int((layers + 2) * tokens * hidden_size(model) * element + layer)
        kept.append(whole + PASSING * layer)
    weight = plan.models[0].get_output_embeddings().weight
    logits, hidden = (4 * responses * longest * size for size in weight.shape)  # bytes of the scored positions
    head = min(logits, KEEP_BYTES[runtime.device.type]) + weight.nbytes if weight.requires_grad else hidden
    policy, critic = plan.roles["policy"].gradient_bytes, plan.roles["value"].gradient_bytes
    before = policy + critic if responses < config.training.minibatch_size else 0  # gradients of earlier micro-batches
    moments = [policy + critic, before + kept[0] + head]
    if config.value.kind in ("separate", "adapter"):
        moments.append((before or policy) + kept[-1])
    how = "checkpointed" if config.policy.gradient_checkpointing else "all layers kept"
    of = f"gradients, activations and logits, {rows} × {length} tokens at once, {how}"
    return Estimate("update", int(max(moments) * HEAP[runtime.device.type]), of)
