"""The decode loop of the backends that run the policy's own forward pass.

Tokens, log-probs and entropy come from one softmax. Finished rows leave the batch, prompts of very different lengths
are decoded in separate batches, and groups of rows are decoded one after another to bound memory. None of this changes
what is drawn: a row's random numbers at a step do not depend on batches or groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apa_cli.config import schema
from apa_cli.models.policy import Policy
from apa_cli.rollouts.backends.cached import DecodingBatch
from apa_cli.rollouts.backends.choice import TokenChooser
from apa_cli.rollouts.backends.ends import Ends
from apa_cli.rollouts.trajectory import Trajectory

CHECK_EVERY = 16  # steps between checks for finished rows on a GPU, where each check waits for the device


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows decoded at the same time. Their caches are freed before the next group's are created."""

    rows: Tensor  # (n,) indices into the B
    batches: Sequence[DecodingBatch]  # each with its rows among these n


def decode_loop(
    policy: Policy,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    groups: Iterable[Group],
    config: schema.GenerationConfig,
    *,
    greedy: bool,
) -> Trajectory:
    """Generate the rows of all `groups` with the global random state.

    Each group starts from the same random state, and the longest one leaves the final state, as if all rows were in
    one group.
    """
    device, B, T = prompt_ids.device, len(prompt_ids), config.max_new_tokens
    choose = TokenChooser(config, policy.eos_token_ids, greedy=greedy)
    response_ids = torch.full((B, T), policy.pad_token_id, device=device)
    logprobs, entropy = torch.zeros(B, T, device=device), torch.zeros(B, T, device=device)
    lengths = torch.zeros(B, dtype=torch.long, device=device)  # 0 = not ended
    random: Any = torch.cuda if device.type == "cuda" else torch
    start = end = random.get_rng_state()
    most = 0  # steps of the longest group
    for group in groups:
        random.set_rng_state(start)
        ends, steps, *columns = _decode(policy, choose, group, B, config)
        if steps > most:
            most, end = steps, random.get_rng_state()
        lengths[group.rows] = ends.lengths
        for whole, part in zip((response_ids, logprobs, entropy), columns, strict=True):
            whole[group.rows] = part
    random.set_rng_state(end)
    counted = torch.where(lengths > 0, lengths, most)  # (B,)
    T = int(counted.max())
    response_mask = torch.arange(T, device=device) < counted[:, None]
    return Trajectory(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids[:, :T],
        response_mask=response_mask,
        ended=lengths > 0,
        rollout_logprobs=torch.where(response_mask, logprobs[:, :T], 0.0),
        entropy=torch.where(response_mask, entropy[:, :T], 0.0),
    )


def _decode(
    policy: Policy, choose: TokenChooser, group: Group, total: int, config: schema.GenerationConfig
) -> tuple[Ends, int, Tensor, Tensor, Tensor]:
    """Decode n of `total` rows. Returns their ends, the steps taken, and ids, log-probs and entropy, (n, T) each."""
    device, n, T = group.rows.device, len(group.rows), config.max_new_tokens
    ends = Ends(n, policy.eos_token_ids, policy.tokenizer, config, device)
    response_ids = torch.full((n, T), policy.pad_token_id, device=device)
    logprobs, entropy = torch.zeros(n, T, device=device), torch.zeros(n, T, device=device)
    every = CHECK_EVERY if device.type == "cuda" else 1
    active = list(group.batches)
    logits = [batch.prefill() for batch in active]
    steps = 0
    while True:
        noise = choose.noise(total, logits[0].shape[-1], device)
        for batch, scores in zip(active, logits, strict=True):
            rows = batch.rows
            choice = choose(scores, None if noise is None else noise[group.rows[rows]], steps)
            response_ids[rows, steps] = torch.where(ends.ended[rows], policy.pad_token_id, choice.ids)
            logprobs[rows, steps] = choice.logprobs
            entropy[rows, steps] = choice.entropy
        steps += 1
        ends.update(response_ids[:, :steps])
        if steps == T:
            break
        if ends.can_end and steps % every == 0:
            active = _without_ended(active, ends.ended)
            if not active:
                break
        logits = [batch.step(response_ids[batch.rows, steps - 1]) for batch in active]
    return ends, steps, response_ids, logprobs, entropy


def _without_ended(batches: list[DecodingBatch], ended: Tensor) -> list[DecodingBatch]:
    """Drop finished batches, and finished rows once they are half of a batch, as selecting rows copies the cache."""
    left = []
    for batch in batches:
        alive = (~ended[batch.rows]).nonzero().squeeze(1)
        if len(alive) == 0:
            continue
        if 2 * len(alive) <= len(batch.rows):
            batch.keep(alive)
        left.append(batch)
    return left
