"""`static`: the policy's forward pass with a static cache; on a GPU the decode step is compiled into CUDA graphs.

Cache and graphs are kept between rollouts, as a graph is bound to the memory it was recorded with. Weights are read in
place, so that an optimizer step needs no new graph. On a CPU nothing is compiled.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import StaticCache

from apa_cli.config import schema
from apa_cli.models.policy import Policy, base_of
from apa_cli.rollouts.backends.cached import BUCKET, StaticBatch
from apa_cli.rollouts.backends.loop import Group, decode_loop
from apa_cli.rollouts.trajectory import Trajectory


class Kept:
    """A model's decode step, perhaps compiled, and its largest cache so far, kept between rollouts."""

    def __init__(self, model: Any, step: Any) -> None:
        self.model, self.step = model, step
        self._rows = self._room = 0
        self._cache: StaticCache | None = None

    def cache(self, rows: int, tokens: int) -> StaticCache:
        """An empty cache with room for at least `tokens` tokens."""
        if self._cache is None or self._rows != rows or self._room < tokens:
            self._cache = None  # frees its memory first
            self._rows, self._room = rows, -(-tokens // BUCKET) * BUCKET
            self._cache = StaticCache(config=self.model.config, max_cache_len=self._room)
        self._cache.reset()
        return self._cache


_KEPT: WeakKeyDictionary[Policy, Kept] = WeakKeyDictionary()


def generate(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, config: schema.GenerationConfig, *, greedy: bool
) -> Trajectory:
    """`prompt_ids` and `prompt_mask` are (B, P) on the CPU."""
    device = policy.runtime.device
    ids, mask = prompt_ids.to(device), prompt_mask.to(device)
    if policy not in _KEPT:
        model = base_of(policy.model)
        step = torch.compile(model, mode="reduce-overhead") if device.type == "cuda" else model
        _KEPT[policy] = Kept(model, step)
    batch = padded_batch(policy, ids, mask, config.max_new_tokens, _KEPT[policy])
    return decode_loop(policy, ids, mask, [Group(rows=batch.rows, batches=[batch])], config, greedy=greedy)


def padded_batch(policy: Policy, ids: Tensor, mask: Tensor, max_new: int, kept: Kept) -> StaticBatch:
    """Prompts (B, P) on the policy's device, padded to a multiple of BUCKET."""
    left = -ids.shape[1] % BUCKET
    ids = nn.functional.pad(ids, (left, 0), value=policy.pad_token_id)
    mask = nn.functional.pad(mask, (left, 0), value=False)
    return StaticBatch(policy, ids, mask, kept.cache(len(ids), ids.shape[1] + max_new), kept.step)
