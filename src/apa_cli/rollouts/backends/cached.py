"""A batch of sequences during generation, with its key-value cache.

`DynamicBatch` has a cache with room for the whole response; `StaticBatch` uses transformers' static cache, which
compiled graphs need.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from apa_cli.algorithms import position_ids
from apa_cli.models.policy import Policy, base_of

BUCKET = 64  # static caches have multiples of this many tokens, so that graphs are reused


class DecodingBatch(Protocol):
    """n of the B rows."""

    rows: Tensor  # (n,) indices into the B

    def prefill(self) -> Tensor:
        """Logits (n, V) of the first response token."""

    def step(self, ids: Tensor) -> Tensor:
        """Append the newest tokens (n,) and return the logits (n, V) of the next."""

    def keep(self, indices: Tensor) -> bool:
        """Keep only these of the n rows; False if the cache cannot."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in a tensor with room for `room` tokens, so that a step copies nothing.

    transformers' DynamicLayer concatenates, which copies the whole cache at every step.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._all_keys: Tensor | None = None  # (n, heads, room, width)
        self._all_values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None:
            self.lazy_initialization(key_states, value_states)
            self._all_keys, self._all_values = (
                states.new_empty(*states.shape[:2], self.room, states.shape[-1])
                for states in (key_states, value_states)
            )
            start = 0
        else:
            start = self.keys.shape[-2]
        assert self._all_keys is not None and self._all_values is not None
        end = start + key_states.shape[-2]
        self._all_keys[:, :, start:end] = key_states
        self._all_values[:, :, start:end] = value_states
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.keys is None:
            return
        assert self._all_keys is not None and self._all_values is not None
        length = self.keys.shape[-2]
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self.keys, self.values = self._all_keys[:, :, :length], self._all_values[:, :, :length]


class DynamicBatch:
    """Left-padded prompts, trimmed to the longest, on a growing cache."""

    def __init__(self, policy: Policy, rows: Tensor, prompt_ids: Tensor, prompt_mask: Tensor, max_new: int) -> None:
        self.model, self.rows = base_of(policy.model), rows
        lengths = prompt_mask.sum(dim=1).to(prompt_ids.device)  # (n,)
        width = max(1, int(prompt_mask.sum(dim=1).max()))
        padded = bool((prompt_mask.sum(dim=1) < width).any())  # on the CPU, where prompts come from
        self.prompt_ids = prompt_ids[:, -width:]
        mask = prompt_mask[:, -width:].to(prompt_ids.device).long()
        self.mask = torch.cat([mask, mask.new_ones(len(mask), max_new)], dim=1)  # (n, P + T)
        self.lengths, self.used = lengths, width
        accepts = inspect.signature(self.model.forward).parameters
        self.accepts = {name for name in ("position_ids", "logits_to_keep", "cache") if name in accepts}
        self.cache = DynamicCache(config=self.model.config)
        # most models need no mask without padding; those without position_ids derive them from it
        self.needs_mask = padded or "position_ids" not in self.accepts
        # without attention layers a mask covers the newest tokens only, and hides none of them at a step
        attends = any(isinstance(layer, CacheLayerMixin) for layer in self.cache.layers)
        self.steps_need_mask = self.needs_mask and (attends or not self.cache.layers)
        # layers with recurrent states besides keys would select rows of the keys only
        self.selects = all(
            isinstance(layer, DynamicLayer) and not hasattr(layer, "recurrent_states") for layer in self.cache.layers
        )
        for i, layer in enumerate(self.cache.layers):
            if type(layer) is DynamicLayer:
                self.cache.layers[i] = RoomyLayer(width + max_new)

    def prefill(self) -> Tensor:
        """Read a prompt once if consecutive rows repeat it."""
        mask = self.mask[:, : self.used]
        repeats = ((self.prompt_ids[1:] == self.prompt_ids[:-1]) & (mask[1:] == mask[:-1])).all(dim=1)
        of_row = nn.functional.pad((~repeats).long().cumsum(dim=0), (1, 0))  # (n,) index of its distinct prompt
        if not (self.selects and bool(repeats.any())):
            return self._forward(self.prompt_ids, position_ids(mask), masked=self.needs_mask)
        different = nn.functional.pad(~repeats, (1, 0), value=True)  # (n,)
        whole, self.mask = self.mask, self.mask[different]
        logits = self._forward(
            self.prompt_ids[different], position_ids(self.mask[:, : self.used]), masked=self.needs_mask
        )
        self.mask = whole
        self.cache.batch_select_indices(of_row)
        return logits[of_row]

    def step(self, ids: Tensor) -> Tensor:
        self.used += 1
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        return self._forward(ids[:, None], positions, masked=self.steps_need_mask)

    def keep(self, indices: Tensor) -> bool:
        if not self.selects:
            return False
        self.cache.batch_select_indices(indices)
        self.rows, self.mask, self.lengths = self.rows[indices], self.mask[indices], self.lengths[indices]
        return True

    def _forward(self, ids: Tensor, positions: Tensor, *, masked: bool) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids}
        inputs["cache" if "cache" in self.accepts else "past_key_values"] = self.cache
        if masked:
            inputs["attention_mask"] = self.mask[:, : self.used]
        if "position_ids" in self.accepts:
            inputs["position_ids"] = positions
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = 1
        return self.model(**inputs, use_cache=True).logits[:, -1]


class StaticBatch:
    """Prompts left-padded to a multiple of BUCKET, on a static cache; `forward` may be compiled."""

    def __init__(
        self, policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, cache: StaticCache, forward: Callable[..., Any]
    ) -> None:
        self.model, self.cache, self.forward = base_of(policy.model), cache, forward
        self.rows = torch.arange(len(prompt_ids), device=prompt_ids.device)
        self.ids = prompt_ids
        self.mask = prompt_mask.long()  # (B, P so far)
        self.positions = position_ids(self.mask)
        accepts = inspect.signature(self.model.forward).parameters
        self.accepts = {name for name in ("position_ids", "logits_to_keep", "cache") if name in accepts}

    def prefill(self) -> Tensor:
        return self._forward(self.model, self.ids, self.positions)

    def step(self, ids: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        # a graph overwrites its output in its next run
        return self._forward(self.forward, ids[:, None], self.positions).clone()

    def keep(self, indices: Tensor) -> bool:
        return False  # another shape would be another graph

    def _forward(self, forward: Callable[..., Any], ids: Tensor, positions: Tensor) -> Tensor:
        # the model makes the mask of the whole cache outside of the compiled graph
        inputs = self.model.prepare_inputs_for_generation(
            ids,
            attention_mask=self.mask,
            position_ids=positions.contiguous(),
            use_cache=True,
            is_first_iteration=ids.shape[1] > 1,
            **{"cache" if "cache" in self.accepts else "past_key_values": self.cache},
        )
        if "position_ids" not in self.accepts:
            inputs.pop("position_ids", None)
        if "logits_to_keep" in self.accepts:
            inputs["logits_to_keep"] = 1
        return forward(**inputs).logits[:, -1]
