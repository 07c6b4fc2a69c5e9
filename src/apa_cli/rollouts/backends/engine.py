"""What generation engines with a sampler of their own have in common: lists of tokens in, a whole rollout out.

They tell no entropy over the vocabulary, so one pass of the policy without gradients gives it. The log-probs kept are
the sampler's own where they are those of the full softmax; where it samples from less, the pass gives them too.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from apa_cli.algorithms import response_logprobs, token_entropy
from apa_cli.config import schema
from apa_cli.models.policy import Policy
from apa_cli.rollouts.trajectory import Trajectory

PASS_TOKENS = 16_384  # padding included, in one forward of the pass
PASS_ROWS = 128  # rows of logits that exist at a time


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response as an engine tells it."""

    ids: list[int]  # up to and including the EOS or the stop string's last token
    logprobs: list[float]
    ended: bool


def prompt_lists(prompt_ids: Tensor, prompt_mask: Tensor) -> list[list[int]]:
    """The prompts without padding."""
    return [row[keep].tolist() for row, keep in zip(prompt_ids, prompt_mask, strict=True)]


def request_seed() -> int:
    """A seed from the global random state, which moves on."""
    return int(torch.randint(2**31 - 1, ()))


@contextlib.contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Engines seed torch, and some Python and NumPy, for the whole process."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def to_rollout(
    policy: Policy,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    responses: Sequence[Response],
    config: schema.GenerationConfig,
    *,
    greedy: bool,
) -> Trajectory:
    """The engine's responses, (B), as a rollout on the policy's device, entropy included."""
    device, B, T = policy.runtime.device, len(responses), max(len(response.ids) for response in responses)
    ids = torch.full((B, T), policy.pad_token_id)
    logprobs = torch.zeros(B, T)
    mask = torch.zeros(B, T, dtype=torch.bool)
    for row, response in enumerate(responses):
        n = len(response.ids)
        ids[row, :n] = torch.tensor(response.ids)
        logprobs[row, :n] = torch.tensor(response.logprobs)
        mask[row, :n] = True
    rollout = Trajectory(
        prompt_ids=prompt_ids.to(device),
        prompt_mask=prompt_mask.to(device),
        response_ids=ids.to(device),
        response_mask=mask.to(device),
        ended=torch.tensor([response.ended for response in responses], device=device),
        rollout_logprobs=logprobs.to(device),
        entropy=torch.zeros(B, T, device=device),
    )
    plain_logprobs, entropy = _policy_pass(policy, rollout, config.temperature)
    whole_softmax = not (greedy or config.top_k or config.top_p < 1 or config.min_new_tokens)
    return replace(
        rollout, rollout_logprobs=rollout.rollout_logprobs if whole_softmax else plain_logprobs, entropy=entropy
    )


def _policy_pass(policy: Policy, rollout: Trajectory, temperature: float) -> tuple[Tensor, Tensor]:
    """log π and entropy of the counted tokens, (B, T) each, 0 elsewhere."""
    logprobs, entropy = (torch.zeros_like(rollout.response_mask, dtype=torch.float32) for _ in range(2))
    for rows in rollout.microbatches(PASS_TOKENS):
        part = rollout.select(rows)
        logits_of = policy.counted_logits(*part.batch)
        counted_ids = part.response_ids[part.response_mask]  # (N,)
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(counted_ids), PASS_ROWS):
            tokens = slice(start, start + PASS_ROWS)
            logits = logits_of(tokens)[None]  # (1, n, V)
            found.append(
                (
                    response_logprobs(logits, counted_ids[None, tokens], temperature=temperature)[0],
                    token_entropy(logits, temperature=temperature)[0],
                )
            )
        for whole, pieces in zip((logprobs, entropy), zip(*found, strict=True), strict=True):
            rectangle = torch.zeros_like(part.response_mask, dtype=torch.float32)
            rectangle[part.response_mask] = torch.cat(pieces).float()
            whole[rows, : rectangle.shape[1]] = rectangle
    return logprobs, entropy
