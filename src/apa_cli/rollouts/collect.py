"""From prompts to a complete rollout: sample, then the passes that the objective needs, without gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from apa_cli.data.prompts import PromptBatch
from apa_cli.models.microbatches import pass_tokens
from apa_cli.models.policy import Policy
from apa_cli.models.reference import Reference
from apa_cli.models.value import SharedValue, Value
from apa_cli.rewards.reward_model import FinishedResponses
from apa_cli.rollouts.generation import decode, raw_texts, spoken_ids
from apa_cli.rollouts.record import Rollout


@torch.no_grad()
def add_passes(
    rollout: Rollout,
    policy: Policy,
    reference: Reference,
    value: Value | None,
    *,
    temperature: float,
    token_budget: int,
    policy_pass: bool,
) -> Rollout:
    """The rollout with values and, where it has none yet, reference log-probs.

    `policy_pass` takes the rollout's log-probs anew from a plain forward (PPO divides by them, and sampling with a
    cache rounds differently). A shared critic reads the policy's hidden states, with or without the head behind them.
    """
    pieces: list[tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]] = []
    for rows in rollout.microbatches(pass_tokens(token_budget, rollout.response_ids.device.type)):
        part = rollout.select(rows)
        values = logprobs = hidden = theirs = None
        if policy_pass:
            logprobs, hidden = policy.logprobs(*part.batch, temperature=temperature)
        if isinstance(value, SharedValue):
            values = value.from_hidden(policy.hidden_states(*part.batch) if hidden is None else hidden)
        elif value is not None:
            values = value(*part.batch)
        if rollout.reference_logprobs is None:
            theirs = reference.logprobs(*part.batch, temperature=temperature)
        pieces.append((rows, theirs, values, logprobs))
    return replace(
        rollout,
        reference_logprobs=(
            _assemble(rollout, [(rows, ref) for rows, ref, _, _ in pieces if ref is not None])
            if rollout.reference_logprobs is None
            else rollout.reference_logprobs
        ),
        values=_assemble(rollout, [(rows, v) for rows, _, v, _ in pieces if v is not None]) if value else None,
        rollout_logprobs=(
            _assemble(rollout, [(rows, lp) for rows, _, _, lp in pieces if lp is not None])
            if policy_pass
            else rollout.rollout_logprobs
        ),
    )


def finished_responses(policy: Policy, prompts: PromptBatch, rollout: Rollout, stop: list[str]) -> FinishedResponses:
    """The texts and columns that rewards read."""
    texts, asked = decode(policy, rollout, stop), rollout.prompt_token_ids()
    return FinishedResponses(
        prompts=prompts.texts,
        responses=texts,
        messages=prompts.messages,
        columns=prompts.columns,
        token_ids=[p + r for p, r in zip(asked, spoken_ids(policy, rollout, texts), strict=True)],
        prompt_lengths=[len(ids) for ids in asked],
        ended=rollout.ended.tolist(),
        response_ids=rollout.response_token_ids(),
        raw=partial(raw_texts, policy, rollout),
        closing=policy.closing_token(chat=prompts.messages is not None),
        torn=prompts.torn,
    )


def _assemble(rollout: Rollout, pieces: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(B, T) from rows trimmed to their own length; 0 where masked."""
    whole = torch.zeros_like(rollout.response_mask, dtype=torch.float32)  # (B, T)
    for rows, piece in pieces:
        whole[rows, : piece.shape[1]] = piece.float()
    return torch.where(rollout.response_mask, whole, 0.0)
