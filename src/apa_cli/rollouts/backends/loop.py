"""The decode loop of the backends that run the policy's own forward.

Tokens, log-probs and entropy come from one softmax; rows that have ended leave the batch; prompts of very
different lengths are decoded in batches of like length. None of it changes what is drawn: the random numbers of a row
and a step are the same however rows are batched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apa_cli.config import schema
from apa_cli.models.policy import Policy
from apa_cli.rollouts.backends.cached import DecodingBatch
from apa_cli.rollouts.backends.choice import TokenChooser
from apa_cli.rollouts.backends.ends import Ends
from apa_cli.rollouts.record import Rollout

CHECK_EVERY = 16  # steps between looks at what has ended on a GPU, where each look waits for the device


def decode_loop(
    policy: Policy,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    batches: Sequence[DecodingBatch],
    config: schema.GenerationConfig,
    *,
    greedy: bool,
) -> Rollout:
    """Generate for all rows of `batches` at once, step by step, with the global random state."""
    device, B, T = prompt_ids.device, len(prompt_ids), config.max_new_tokens
    choose = TokenChooser(config, policy.eos_token_ids, greedy=greedy)
    ends = Ends(B, policy.eos_token_ids, policy.tokenizer, config, device)
    response_ids = torch.full((B, T), policy.pad_token_id, device=device)
    logprobs = torch.zeros(B, T, device=device)
    entropy = torch.zeros(B, T, device=device)
    every = CHECK_EVERY if device.type == "cuda" else 1
    active = list(batches)
    logits = [batch.prefill() for batch in active]
    steps = 0
    while True:
        noise = choose.noise(B, logits[0].shape[-1], device)
        for batch, scores in zip(active, logits, strict=True):
            rows = batch.rows
            choice = choose(scores, None if noise is None else noise[rows], steps)
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
    return _record(prompt_ids, prompt_mask, response_ids[:, :steps], logprobs, entropy, ends)


def _without_ended(batches: list[DecodingBatch], ended: Tensor) -> list[DecodingBatch]:
    """Drop what has ended: whole batches, and rows once half of a batch's are idle (selecting copies the cache)."""
    left = []
    for batch in batches:
        alive = (~ended[batch.rows]).nonzero().squeeze(1)
        if len(alive) == 0:
            continue
        if 2 * len(alive) <= len(batch.rows):
            batch.keep(alive)
        left.append(batch)
    return left


def _record(
    prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, logprobs: Tensor, entropy: Tensor, ends: Ends
) -> Rollout:
    steps = response_ids.shape[1]
    lengths = torch.where(ends.ended, ends.lengths, steps)
    T = int(lengths.max())
    response_mask = torch.arange(T, device=response_ids.device) < lengths[:, None]
    return Rollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids[:, :T],
        response_mask=response_mask,
        ended=ends.ended,
        rollout_logprobs=torch.where(response_mask, logprobs[:, :T], 0.0),
        entropy=torch.where(response_mask, entropy[:, :T], 0.0),
    )
