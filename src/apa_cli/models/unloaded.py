"""Models on torch's meta device, where tensors have shapes but no data, and what their forward passes would keep."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from apa_cli.models.loading import load_causal_config


def unloaded_model(key: str, path: str, *, dtype: torch.dtype | None = None, auto: Any = None, **options: Any) -> Any:
    """The architecture of the model at `path`. Raises UserError if its configuration is not that of a causal model."""
    config = load_causal_config(key, path, **options)
    with torch.device("meta"):
        trust = options["trust_remote_code"]
        return (auto or AutoModelForCausalLM).from_config(config, dtype=dtype, trust_remote_code=trust)


def cache_bytes(model: Any) -> float:
    """Bytes of a token in the KV cache, in the dtype of the weights."""
    tokens = 64
    with torch.no_grad():
        held = _forward(model.base_model, 1, tokens, use_cache=True)[1].layers
    return float(sum(t.nbytes for layer in held for t in (layer.keys, layer.values)) / tokens)


def kept_bytes(model: Any, rows: int, length: int) -> int:
    """Bytes that a forward pass of the transformer keeps for backward without checkpointing, weights excluded."""
    kept: dict[int, Any] = {}  # holds each storage, so that no other takes its address

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _forward(model.base_model, rows, length, use_cache=False)
    for weight in model.parameters():
        kept.pop(weight.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


def _forward(trunk: Any, rows: int, length: int, *, use_cache: bool) -> Any:
    """Gives most models the mask they would make, as they cannot look for padding on the meta device."""
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device="meta")
    try:
        return trunk(input_ids=ids, attention_mask=mask, use_cache=use_cache)
    except (ValueError, RuntimeError, TypeError):
        return trunk(input_ids=ids, use_cache=use_cache)
