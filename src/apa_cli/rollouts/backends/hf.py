"""`hf`: the policy's forward pass with a growing cache."""

from __future__ import annotations

import torch
from torch import Tensor

from apa_cli.config import schema
from apa_cli.models.microbatches import rows_at_once
from apa_cli.models.policy import Policy, base_of
from apa_cli.rollouts.backends.cached import DynamicBatch
from apa_cli.rollouts.backends.loop import Group, decode_loop
from apa_cli.rollouts.trajectory import Trajectory

MOST_BATCHES = 4
# Rough speed of one or two CPU cores, only to decide whether to split a batch.
FLOPS, BYTES, CALL = 5e10, 1e10, 4e-4  # per second; per second; seconds per call of a layer


def generate(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, config: schema.GenerationConfig, *, greedy: bool
) -> Trajectory:
    """`prompt_ids` and `prompt_mask` are (B, P) on the CPU."""
    device = policy.runtime.device
    ids = prompt_ids.to(device)
    at_once = rows_at_once(config.rows, len(ids), device.type)
    groups = (
        _group(policy, rows, prompt_ids, prompt_mask, config) for rows in plan_groups(prompt_ids, prompt_mask, at_once)
    )
    return decode_loop(policy, ids, prompt_mask.to(device), groups, config, greedy=greedy)


def _group(
    policy: Policy, rows: Tensor, prompt_ids: Tensor, prompt_mask: Tensor, config: schema.GenerationConfig
) -> Group:
    device, T = policy.runtime.device, config.max_new_tokens
    ids, mask = prompt_ids[rows], prompt_mask[rows]
    hidden = getattr(base_of(policy.model).config.get_text_config(), "hidden_size", None)
    plan = [torch.arange(len(rows))]
    if device.type == "cpu" and hidden is not None:
        plan = plan_batches(mask.sum(dim=1), T, hidden)
    batches = [DynamicBatch(policy, part.to(device), ids[part].to(device), mask[part], T) for part in plan]
    return Group(rows=rows.to(device), batches=batches)


def plan_groups(prompt_ids: Tensor, prompt_mask: Tensor, at_once: int) -> list[Tensor]:
    """Groups of at most `at_once` rows of similar length, (n,) each, that hold a cache at the same time.

    Rows of one prompt stay together, so that it is read once, unless they are too many.
    """
    B = len(prompt_ids)
    if at_once >= B:
        return [torch.arange(B)]
    order = prompt_mask.sum(dim=1).argsort(descending=True, stable=True)
    ids, mask = prompt_ids[order], prompt_mask[order]
    begins = ((ids[1:] != ids[:-1]) | (mask[1:] != mask[:-1])).any(dim=1).nonzero().flatten() + 1  # of the next prompt
    most = -(-B // -(-B // at_once))  # groups of similar size
    groups, start = [], 0
    while start < B:
        end = min(start + most, B)
        if end < B:
            whole = begins[(begins > start) & (begins <= end)]
            end = int(whole[-1]) if len(whole) else end
        groups.append(order[start:end].sort().values)
        start = end
    return groups


def plan_batches(prompt_lengths: Tensor, max_new_tokens: int, hidden: int) -> list[Tensor]:
    """Split rows by length into batches, (n,) each, to be decoded on a CPU, if that saves time.

    A padded token costs a pass through the layers once, and its key and value at every step; another batch costs the
    overhead of its calls. A GPU reads all weights for every batch and step, so it decodes one batch.
    """
    per_token = 24 * hidden**2 / FLOPS + max_new_tokens * 8 * hidden / BYTES  # seconds a layer
    best, least = [torch.arange(len(prompt_lengths))], float("inf")
    order = prompt_lengths.argsort(descending=True, stable=True)
    for count in range(1, min(MOST_BATCHES, len(order)) + 1):
        plan = [rows.sort().values for rows in order.tensor_split(count)]
        padded = sum(len(rows) * int(prompt_lengths[rows].max()) for rows in plan)
        cost = padded * per_token + count * max_new_tokens * CALL
        if cost < least:
            best, least = plan, cost
    return best
