"""`static`: the policy's forward with a static cache; on a GPU its decode step is compiled into CUDA graphs.

Cache and graphs are kept from one rollout to the next, as a graph is tied to the memory it was recorded with. Weights
are read where they lie, so an optimizer's step needs no new graph. The same on a CPU, without compilation.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import StaticCache

from apa_cli.config import schema
from apa_cli.models.policy import Policy
from apa_cli.rollouts.backends.cached import BUCKET, StaticBatch, base_model
from apa_cli.rollouts.backends.loop import Group, decode_loop
from apa_cli.rollouts.record import Rollout


class _Kept:
    """What one model keeps between rollouts: caches by (rows, tokens), and its compiled step."""

    def __init__(self) -> None:
        self.caches: dict[tuple[int, int], StaticCache] = {}
        self.step: Any = None


_KEPT: WeakKeyDictionary[Policy, _Kept] = WeakKeyDictionary()


def generate(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, config: schema.GenerationConfig, *, greedy: bool
) -> Rollout:
    """`prompt_ids` and `prompt_mask` (B, P) as the prompts come, on the CPU."""
    device = policy.runtime.device
    ids, mask = prompt_ids.to(device), prompt_mask.to(device)
    (B, P), kept = ids.shape, _KEPT.setdefault(policy, _Kept())
    left = -P % BUCKET
    size = (B, -(-(P + left + config.max_new_tokens) // BUCKET) * BUCKET)
    if size in kept.caches:
        kept.caches[size].reset()
    else:
        kept.caches[size] = StaticCache(config=base_model(policy).config, max_cache_len=size[1])
    if kept.step is None:
        model = base_model(policy)
        kept.step = torch.compile(model, mode="reduce-overhead") if device.type == "cuda" else model
    padded_ids = nn.functional.pad(ids, (left, 0), value=policy.pad_token_id)  # (B, a multiple of BUCKET)
    padded_mask = nn.functional.pad(mask, (left, 0), value=False)
    batch = StaticBatch(policy, padded_ids, padded_mask, kept.caches[size], kept.step)
    return decode_loop(policy, ids, mask, [Group(rows=batch.rows, batches=[batch])], config, greedy=greedy)
