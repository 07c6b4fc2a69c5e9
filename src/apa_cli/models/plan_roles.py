"""The plan of a configuration: every role built without weights, from its configuration file alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from apa_cli.config.schema import ScorerConfig, SeveralConfig, TrainConfig
from apa_cli.models.adapter_loading import attach_adapter, attach_value_adapter
from apa_cli.models.adapters import REFERENCE_ADAPTER, VALUE_ADAPTER
from apa_cli.models.device import Runtime, model_dtype, trained_dtype
from apa_cli.models.loading import load_causal_config
from apa_cli.models.memory import available_bytes
from apa_cli.models.microbatches import rows_at_once
from apa_cli.models.plan import (
    MLP_KEPT,
    Estimate,
    Plan,
    Role,
    Shape,
    activation_bytes,
    head_logits_bytes,
    kv_cache_bytes,
    sampling_logits_bytes,
)
from apa_cli.models.value import ValueHead, hidden_size
from apa_cli.rewards.classifier import classifier_config

SMALLEST_8BIT, BLOCK_8BIT = 4096, 256  # bitsandbytes: numbers in a tensor from which it quantises, and by block


def make_plan(config: TrainConfig, runtime: Runtime) -> Plan:
    """Raises UserError for a model whose configuration cannot be read."""
    with torch.device("meta"):
        policy = _policy(config, runtime)
        model = policy.get_base_model() if config.policy.adapter.enabled else policy
        roles = [
            _role(
                "policy",
                f"{config.policy.path}{', frozen, with an adapter' if config.policy.adapter.enabled else ''}",
                _without_adapters(policy, REFERENCE_ADAPTER, VALUE_ADAPTER),
                config.optimizer.name,
            ),
            _reference(config, runtime, policy, model),
        ]
        roles += [_value(config, policy, model), *_rewards(config, runtime)]
    shape = shape_of(model.config.get_text_config(), gated=any("gate" in name for name, _ in model.named_parameters()))
    element = 2 if runtime.bf16 else 4
    return Plan(
        roles=tuple(roles),
        estimates=_estimates(config, runtime, shape, element, next(model.parameters()).element_size()),
        kv_row_bytes=kv_cache_bytes(
            shape, rows=min(1, _sampled(config)), tokens=config.generation.max_new_tokens, element_bytes=element
        ),
        device=runtime.describe(),
        available_bytes=available_bytes(runtime.device),
    )


def remedies(config: TrainConfig) -> list[str]:
    """What would make the certain part smaller, the most effective first."""
    found = []
    if not config.policy.adapter.enabled:
        found.append("add policy=lora (one frozen copy of the weights serves policy and reference)")
    if config.value.kind == "separate":
        found.append("value=shared (no second network)")
    if config.optimizer.name == "adamw" and not config.policy.adapter.enabled:
        found.append("optimizer.name=adamw_8bit (optimizer states at a quarter of the size)")
    if config.precision == "fp32":
        found.append("precision=bf16 (frozen weights at half the size)")
    return found


def shape_of(config: Any, *, gated: bool) -> Shape:
    """From a text model's configuration, in the names that Hugging Face gives these sizes."""
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    intermediate = next((int(size) for size in (getattr(config, name, None) for name in names) if size), 4 * hidden)
    activation = next((a for a in (getattr(config, n, None) for n in ("activation_function", "hidden_act")) if a), "")
    return Shape(
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or (1 if _multi_query(config) else heads)),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        intermediate=intermediate,
        mlp="gated" if gated else activation if activation in MLP_KEPT else "plain",
        vocabulary=int(config.vocab_size),
    )


def _multi_query(config: Any) -> bool:
    return bool(getattr(config, "multi_query", False)) and not getattr(config, "new_decoder_architecture", False)


def _estimates(
    config: TrainConfig, runtime: Runtime, shape: Shape, element: int, residual: int
) -> tuple[Estimate, ...]:
    P, T, rows = config.data.max_prompt_tokens, config.generation.max_new_tokens, _sampled(config)
    if config.generation.backend == "hf":
        rows = rows_at_once(config.generation.rows, rows, runtime.device.type)
    minibatch = config.training.minibatch_size
    tokens = max(P + T, min(config.training.microbatch_tokens, minibatch * (P + T)))
    responses = min(minibatch, max(1, tokens // (P + T)))
    cache = kv_cache_bytes(shape, rows=rows, tokens=P + T, element_bytes=element)
    activations = activation_bytes(
        shape,
        tokens=tokens,
        bf16=runtime.bf16,
        checkpointing=config.policy.gradient_checkpointing,
        residual_bytes=residual,
    )
    logits = head_logits_bytes(shape, tokens=responses * T, device_type=runtime.device.type)
    how = "checkpointed" if config.policy.gradient_checkpointing else "all layers kept"
    generation = Estimate(
        name="generation",
        of=f"KV cache and logits, {rows} × up to {P} + {T} tokens{', to evaluate' if config.rollout.offline else ''}",
        bytes=cache + sampling_logits_bytes(shape, rows=rows),
    )
    update = Estimate(
        name="update",
        of=f"activations and logits, a micro-batch of up to {tokens:,} tokens, {how}",
        bytes=activations + logits,
    )
    return (generation, update) if rows else (update,)


def _sampled(config: TrainConfig) -> int:
    """Responses sampled at a time: of logged ones, those that evaluations ask for."""
    batch = config.rollout.batch_size
    return min(batch, config.evaluation.prompts) if config.rollout.offline else batch


def _policy(config: TrainConfig, runtime: Runtime) -> Any:
    adapter, dtype = config.policy.adapter, model_dtype(config.policy, runtime)
    model = _build("AutoModelForCausalLM", "policy.path", config.policy.path, dtype, config, config.policy.revision)
    if not adapter.enabled:
        return model
    model = attach_adapter(model, config.policy, None)
    if config.value.kind == "adapter":
        attach_value_adapter(model, config.policy, None)
    return model


def _reference(config: TrainConfig, runtime: Runtime, policy: Any, model: Any) -> Role:
    if config.reference.path is not None:
        dtype = model_dtype(config.policy, runtime)
        own = _build(
            "AutoModelForCausalLM", "reference.path", config.reference.path, dtype, config, config.reference.revision
        )
        return _role("reference", config.reference.path, own.requires_grad_(False).named_parameters())
    if config.policy.adapter.path is not None:
        start = _adapter(policy, REFERENCE_ADAPTER, train=False)
        return _role("reference", "the policy's, adapter as it started", start)
    if config.policy.adapter.enabled:
        return Role(name="reference", weights="the policy's, adapter off")
    role = _role("reference", "a frozen copy of the policy", model.named_parameters())
    return replace(role, trained=0, gradient_bytes=0, optimizer_bytes=0)


def _value(config: TrainConfig, policy: Any, model: Any) -> Role:
    if config.value.kind == "none":
        return Role(name="value", weights="none: the responses to a prompt are compared")
    optimizer = config.optimizer.name
    if config.value.kind == "separate":
        key, path = ("value.path", config.value.path) if config.value.path else ("policy.path", config.policy.path)
        trunk = _build(
            "AutoModel",
            key,
            path,
            trained_dtype(config.policy),
            config,
            config.value.revision if config.value.path else config.policy.revision,
        )
        own = [*trunk.named_parameters(), *ValueHead(hidden_size(trunk)).named_parameters()]
        return _role("value", f"a network of its own, from {config.value.path or 'the policy'}", own, optimizer)
    head = list(ValueHead(hidden_size(model)).named_parameters())
    if config.value.kind == "shared":
        return _role("value", "a head on the policy", head, optimizer)
    own = _adapter(policy, VALUE_ADAPTER, train=True)
    return _role("value", "the policy's base, an adapter and a head of its own", [*own, *head], optimizer)


def _rewards(config: TrainConfig, runtime: Runtime) -> list[Role]:
    """Of a model that several name, the first holds the weights."""
    roles: list[Role] = []
    holders: dict[tuple[str | None, str | None], str] = {}
    rewards: list[tuple[str, str, SeveralConfig]] = []
    if config.needs_reward:
        rewards.append(("reward", "reward", config.reward))
    else:
        roles.append(Role(name="reward", weights="none: scores are logged, and nothing is evaluated"))
    if config.evaluation.reward.given:
        rewards.append(("evaluator", "evaluation.reward", config.evaluation.reward))
    for name, key, reward in rewards:
        parts: dict[str, tuple[str, ScorerConfig]]
        parts = {f"{name}.{part}": (f"{key}.components.{part}", own) for part, own in reward.components.items()}
        for role, (where, one) in (parts or {name: (key, reward)}).items():
            model = (one.path, one.revision)
            if one.kind == "model" and model in holders:
                roles.append(Role(name=role, weights=f"those of {holders[model]}"))
                continue
            roles.append(_scorer(role, f"{where}.path", one, runtime))
            if one.kind == "model":
                holders[model] = role
    return roles


def _scorer(name: str, key: str, config: ScorerConfig, runtime: Runtime) -> Role:
    if config.kind in ("function", "http"):
        return Role(name=name, weights=f"none: {config.source}")
    from transformers import AutoModelForSequenceClassification

    assert config.path is not None
    model = AutoModelForSequenceClassification.from_config(
        classifier_config(config.path, config.revision, key), dtype=runtime.frozen_dtype, trust_remote_code=False
    )
    return _role(name, config.path, model.requires_grad_(False).named_parameters())


def _build(auto_class: str, key: str, path: str, dtype: torch.dtype, config: TrainConfig, revision: str | None) -> Any:
    import transformers

    options: dict[str, Any] = {"trust_remote_code": config.policy.trust_remote_code and path == config.policy.path}
    model_config = load_causal_config(key, path, revision=revision, **options)
    return getattr(transformers, auto_class).from_config(model_config, dtype=dtype, **options)


def _adapter(model: Any, name: str, *, train: bool) -> list[tuple[str, nn.Parameter]]:
    return [(n, p.requires_grad_(train)) for n, p in model.named_parameters() if name in n.split(".")]


def _without_adapters(model: Any, *names: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if not set(names) & set(name.split("."))]


def _role(name: str, weights: str, parameters: Any, optimizer: str = "adamw") -> Role:
    """Of named parameters, each counted once however many names it has."""
    own = [p for _, p in parameters]
    trained = [p for p in own if p.requires_grad]
    return Role(
        name=name,
        weights=weights,
        parameters=sum(p.numel() for p in own),
        parameter_bytes=sum(p.numel() * p.element_size() for p in own),
        trained=sum(p.numel() for p in trained),
        gradient_bytes=sum(p.numel() * p.element_size() for p in trained),
        optimizer_bytes=sum(_state_bytes(p, optimizer) for p in trained),
    )


def _state_bytes(weight: nn.Parameter, optimizer: str) -> int:
    """Of AdamW's two moments; quantised, a byte each and for each block its float32 scale."""
    count = weight.numel()
    if optimizer == "adamw_8bit" and count >= SMALLEST_8BIT:
        return 2 * (count + 4 * -(-count // BLOCK_8BIT))
    return 2 * count * (4 if optimizer == "adamw_8bit" else weight.element_size())
