"""An estimate of the memory that sampling and the update need beyond weights and optimizer states.

The models run on torch's meta device, where tensors have shapes but no data, for the lengths of the prompts at hand.
This shows what a forward pass keeps for backward and the size of a KV cache, whatever the architecture.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from apa_cli.algorithms.head import KEEP_BYTES
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt
from apa_cli.models.device import Runtime
from apa_cli.models.microbatches import plan_microbatches, rows_at_once
from apa_cli.models.value import hidden_size
from apa_cli.rollouts.backends.hf import plan_batches

DRAWS = 50  # batches drawn from the prompts to find how large they get
BRIEF = 64  # tokens of the row that bytes per token are measured on
LOGIT_COPIES = 3  # float32 logits of one generation step: as sampled, for the log-prob, for the entropy
BF16_SHARE = 0.625  # of the float32 activations: under autocast norms still compute and keep float32
PASSING = 0.5  # of what a layer keeps for backward: the most it holds at a time without a backward
HEAP = {"cpu": 1.4, "cuda": 1.0}  # resident bytes per byte of tensors, measured: glibc's heap has holes


class Estimate(NamedTuple):
    """What one phase of an iteration needs."""

    name: str
    bytes: int
    of: str


def estimates(
    models: Sequence[Any],
    gradient_bytes: tuple[int, int],
    config: TrainConfig,
    runtime: Runtime,
    prompts: Sequence[Prompt],
) -> list[Estimate]:
    """Of generation, if anything is sampled, and of the update, for prompts and logged responses of these lengths.

    models: on the meta device, the policy and a critic with a transformer of its own. They become float32, as that
    device has no autocast. gradient_bytes: of policy and critic.
    """
    for model in models:
        model.float().eval()
    generated, pieces = _draw_batches(prompts, config, runtime.device.type)
    update = _update(models, gradient_bytes, config, runtime, pieces)
    return [_generation(models[0], config, runtime, generated), update] if generated else [update]


Pieces = list[tuple[int, int, int, int]]  # micro-batches: tokens with padding, rows, longest prompt, longest response


def _draw_batches(prompts: Sequence[Prompt], config: TrainConfig, device_type: str) -> tuple[list[int], list[Pieces]]:
    """Prompt lengths of the largest batch decoded at once, longest first, and a minibatch's pieces for each draw."""
    T, copies = config.generation.max_new_tokens, config.rollout.responses_per_prompt
    lengths = [(len(p.token_ids), len(p.logged.token_ids) if p.logged is not None else T) for p in prompts]
    draw = random.Random(0)
    sampled, updates = [], []
    for _ in range(DRAWS):
        batch = [row for row in draw.choices(lengths, k=config.rollout.prompts) for _ in range(copies)]
        sampled.append(sorted((prompt for prompt, _ in batch), reverse=True))
        asked, answers = zip(*draw.sample(batch, config.training.minibatch_size), strict=True)
        pieces = []
        for rows in plan_microbatches(asked, answers, config.training.microbatch_tokens, device_type=device_type):
            prompt, response = max(asked[i] for i in rows), max(answers[i] for i in rows)
            pieces.append((len(rows) * (prompt + response), len(rows), prompt, response))
        updates.append(pieces)
    longest = max(sampled)[: config.evaluation.prompts if config.rollout.offline else None]
    if config.generation.backend == "hf":
        longest = longest[: rows_at_once(config.generation.rows, len(longest), device_type)]
    return longest, updates


def _generation(model: Any, config: TrainConfig, runtime: Runtime, prompts: list[int]) -> Estimate:
    """The KV cache, and beside it a step's logits or the activations of the prefill."""
    T = config.generation.max_new_tokens
    parts = [prompts]
    if (
        config.generation.backend == "hf" and runtime.device.type == "cpu"
    ):  # rows of similar length are decoded together
        plan = plan_batches(torch.tensor(prompts), T, hidden_size(model))
        parts = [[prompts[i] for i in part.tolist()] for part in plan]
    with torch.no_grad():
        held = _forward(model.base_model, 1, BRIEF, use_cache=True)[1].layers
    token = sum(t.nbytes for layer in held for t in (layer.keys, layer.values)) / BRIEF / (2 if runtime.bf16 else 1)
    cache = token * sum(len(part) * (part[0] + T) for part in parts)
    read = max(len(part) * part[0] for part in parts) // config.rollout.responses_per_prompt
    logits = LOGIT_COPIES * len(prompts) * int(model.config.get_text_config().vocab_size) * 4
    layer = PASSING * kept_bytes(model, 1, BRIEF, runtime) / _layers(model) / BRIEF  # per token
    of = f"KV cache and logits, {len(prompts)} × up to {prompts[0]} + {T} tokens"
    if config.rollout.offline:
        of += ", to evaluate"
    return Estimate("generation", int((cache + max(logits, layer * read)) * HEAP[runtime.device.type]), of)


def _update(
    models: Sequence[Any], gradient_bytes: tuple[int, int], config: TrainConfig, runtime: Runtime, draws: list[Pieces]
) -> Estimate:
    """The largest of the policy's backward, a separate critic's backward after it, and the optimizer step."""
    _, rows, prompt, response = max(max(pieces) for pieces in draws)
    length, checkpointing, kept = prompt + response, config.policy.gradient_checkpointing, []
    for model in models:
        whole = kept_bytes(model, rows, length, runtime)
        layer = whole / _layers(model)
        if checkpointing:  # the residual stream into each layer and the last norm, and one layer
            element = 2 if runtime.bf16 and config.policy.adapter.enabled else 4
            whole = int((_layers(model) + 2) * rows * length * hidden_size(model) * element + layer)
        kept.append(whole + PASSING * layer)
    weight = models[0].get_output_embeddings().weight
    scored, room = rows * response, KEEP_BYTES[runtime.device.type]
    trained = min(4 * scored * len(weight), room) + weight.nbytes
    head = trained if weight.requires_grad else 4 * scored * weight.shape[1]
    policy, critic = gradient_bytes
    before = policy + critic if any(len(pieces) > 1 for pieces in draws) else 0  # gradients of earlier micro-batches
    moments = [policy + critic, before + kept[0] + head]
    if config.value.kind in ("separate", "adapter"):
        moments.append((before or policy) + kept[-1])
    how = "checkpointed" if checkpointing else "all layers kept"
    of = f"gradients, activations and logits, {rows} × {prompt} + {response} tokens at once, {how}"
    return Estimate("update", int(max(moments) * HEAP[runtime.device.type]), of)


def kept_bytes(model: Any, rows: int, length: int, runtime: Runtime) -> int:
    """Bytes that a forward pass of the transformer keeps for backward without checkpointing, weights excluded."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}  # holds each storage, so that no other takes its address

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _forward(model.base_model, rows, length, use_cache=False)
    found = sum(storage.nbytes() for storage in kept.values())
    return int(found * BF16_SHARE) if runtime.bf16 else found


def _forward(trunk: Any, rows: int, length: int, *, use_cache: bool) -> Any:
    """Gives most models the mask they would make, as they cannot look for padding on the meta device."""
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device="meta")
    try:
        return trunk(input_ids=ids, attention_mask=mask, use_cache=use_cache)
    except (ValueError, RuntimeError, TypeError):
        return trunk(input_ids=ids, use_cache=use_cache)


def _layers(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)
