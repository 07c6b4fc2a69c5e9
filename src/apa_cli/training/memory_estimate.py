"""What sampling and the update need for a while, beyond weights and optimizer states: an estimate.

The models run on torch's meta device, where tensors have shapes and no numbers, for the lengths of the prompts at hand.
That tells what a forward keeps for its backward and what a KV cache takes, whatever the architecture.
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

DRAWS = 50  # batches that are drawn from the prompts to find how large they get
BRIEF = 64  # tokens of a row that tells bytes a token
LOGIT_COPIES = 3  # float32 logits of one step of generation: as sampled, for the log-prob, for the entropy
BF16_SHARE = 0.625  # of float32's bytes: norms compute in float32 under autocast, and keep it
PASSING = 0.5  # of what a layer keeps for its backward: the most that it holds at a time without one
HEAP = {"cpu": 1.4, "cuda": 1.0}  # resident bytes to a byte of tensors: glibc's heap has holes; measured


class Estimate(NamedTuple):
    """What is needed for a while."""

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
    """Of generation, where anything is sampled, and of the update, for prompts and logged responses as long as these.

    models: the policy and, of a critic with a transformer of its own, that, on the meta device; they become float32,
    as autocast does not reach that device. gradient_bytes: of policy and critic.
    """
    shapes = _shapes(prompts, config, runtime.device.type)
    for model in models:
        model.float().eval()
    update = _update(models, gradient_bytes, config, runtime, shapes)
    return [_generation(models[0], config, runtime, shapes), update] if shapes.sampled else [update]


class Shapes(NamedTuple):
    """The largest of what is drawn from the data, in tokens, padding included."""

    sampled: list[int]  # prompts of the responses that are decoded at the same time, longest first
    rows: int  # of the update's micro-batch
    prompt: int
    response: int
    accumulates: bool  # a minibatch is several micro-batches


def _shapes(prompts: Sequence[Prompt], config: TrainConfig, device_type: str) -> Shapes:
    T, budget, copies = (
        config.generation.max_new_tokens,
        config.training.microbatch_tokens,
        config.rollout.responses_per_prompt,
    )
    lengths = [(len(p.token_ids), len(p.logged.token_ids) if p.logged is not None else T) for p in prompts]
    draw = random.Random(0)
    sampled, updates = [], []
    for _ in range(DRAWS):
        batch = [row for row in draw.choices(lengths, k=config.rollout.prompts) for _ in range(copies)]
        sampled.append(sorted((prompt for prompt, _ in batch), reverse=True))
        updates.append(_microbatches(draw.sample(batch, config.training.minibatch_size), budget, device_type))
    longest = max(sampled)[: config.evaluation.prompts if config.rollout.offline else None]
    if config.generation.backend == "hf":
        longest = longest[: rows_at_once(config.generation.rows, len(longest), device_type)]
    _, rows, prompt, response = max(max(pieces) for pieces in updates)
    return Shapes(longest, rows, prompt, response, any(len(pieces) > 1 for pieces in updates))


def _microbatches(
    lengths: Sequence[tuple[int, int]], token_budget: int, device_type: str
) -> list[tuple[int, int, int, int]]:
    """Tokens, rows, longest prompt and longest response of each."""
    prompts, responses = zip(*lengths, strict=True)
    pieces = plan_microbatches(prompts, responses, token_budget, device_type=device_type)
    sizes = [(len(rows), max(prompts[i] for i in rows), max(responses[i] for i in rows)) for rows in pieces]
    return [(rows * (prompt + response), rows, prompt, response) for rows, prompt, response in sizes]


def _generation(model: Any, config: TrainConfig, runtime: Runtime, shapes: Shapes) -> Estimate:
    """The cache, and on top of it a step's logits or what reading the prompts takes."""
    T, prompts = config.generation.max_new_tokens, shapes.sampled
    parts = [prompts]
    if config.generation.backend == "hf" and runtime.device.type == "cpu":  # which decodes like lengths together
        cut = plan_batches(torch.tensor(prompts), T, hidden_size(model))
        parts = [[prompts[i] for i in part.tolist()] for part in cut]
    with torch.no_grad():
        held = _forward(model.base_model, 1, BRIEF, use_cache=True)[1].layers
    token = sum(t.nbytes for layer in held for t in (layer.keys, layer.values)) / BRIEF / (2 if runtime.bf16 else 1)
    cache = token * sum(len(part) * (part[0] + T) for part in parts)
    read = max(len(part) * part[0] for part in parts) // config.rollout.responses_per_prompt
    logits = LOGIT_COPIES * len(prompts) * int(model.config.get_text_config().vocab_size) * 4
    layer = PASSING * kept_bytes(model, 1, BRIEF, runtime) / _layers(model) / BRIEF  # a token
    of = f"KV cache and logits, {len(prompts)} × up to {prompts[0]} + {T} tokens"
    if config.rollout.offline:
        of += ", to evaluate"
    return Estimate("generation", int((cache + max(logits, layer * read)) * HEAP[runtime.device.type]), of)


def _update(
    models: Sequence[Any], gradient_bytes: tuple[int, int], config: TrainConfig, runtime: Runtime, shapes: Shapes
) -> Estimate:
    """The largest moment: the policy's backward, that of a critic behind it, or the optimizer's step."""
    rows, length, kept = shapes.rows, shapes.prompt + shapes.response, []
    for model in models:
        whole = kept_bytes(model, rows, length, runtime)
        layer = whole / _layers(model)
        if config.policy.gradient_checkpointing:  # the residual stream into every layer and the last norm, and a layer
            element = 2 if runtime.bf16 and config.policy.adapter.enabled else 4
            whole = int((_layers(model) + 2) * rows * length * hidden_size(model) * element + layer)
        kept.append(whole + PASSING * layer)
    weight = models[0].get_output_embeddings().weight
    scored, room = rows * shapes.response, KEEP_BYTES[runtime.device.type]
    trained = min(4 * scored * len(weight), room) + weight.nbytes
    head = trained if weight.requires_grad else 4 * scored * weight.shape[1]
    policy, critic = gradient_bytes
    before = policy + critic if shapes.accumulates else 0
    moments = [policy + critic, before + kept[0] + head]
    if config.value.kind in ("separate", "adapter"):
        moments.append((before or policy) + kept[-1])
    how = "checkpointed" if config.policy.gradient_checkpointing else "all layers kept"
    of = f"gradients, activations and logits, {rows} × {shapes.prompt} + {shapes.response} tokens at once, {how}"
    return Estimate("update", int(max(moments) * HEAP[runtime.device.type]), of)


def kept_bytes(model: Any, rows: int, length: int, runtime: Runtime) -> int:
    """What a forward of the transformer leaves for its backward, weights apart, were nothing checkpointed."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}  # every storage once, held so that no other takes its place

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
    """On the meta device, where padding cannot be looked for: most take the mask that they would make of it."""
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device="meta")
    try:
        return trunk(input_ids=ids, attention_mask=mask, use_cache=use_cache)
    except (ValueError, RuntimeError, TypeError):
        return trunk(input_ids=ids, use_cache=use_cache)


def _layers(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)
