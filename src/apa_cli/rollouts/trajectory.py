"""The record of a rollout from collection to update: responses, log-probs, values and scores."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from apa_cli.algorithms import kl_k1, per_response
from apa_cli.models.layout import Batch
from apa_cli.models.microbatches import plan_microbatches
from apa_cli.rewards.record import FinishedResponses


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """B responses as plain tensors that can be split by rows. Log-probs are nats in float32, without gradients.

    A prompt `What is 2 + 2?` of 6 tokens and the response `4 <eos>` in a batch with P = 8 and T = 16:
    prompt_mask [0 0 1 1 1 1 1 1], response_mask [1 1 0 … 0], ended True, and reference_logprobs[1] is
    log π_ref(<eos> | prompt, `4`).
    """

    prompt_ids: Tensor  # (B, P) left-padded
    prompt_mask: Tensor  # (B, P) bool
    response_ids: Tensor  # (B, T) the sampled or logged ids
    response_mask: Tensor  # (B, T) bool, True up to and including the first EOS or the stop string's last token
    ended: Tensor  # (B,) bool, False = cut at max_new_tokens
    rollout_logprobs: Tensor | None = None  # (B, T) policy that sampled; None for logged responses
    entropy: Tensor | None = None  # (B, T) of that policy over the vocabulary; None for logged responses
    reference_logprobs: Tensor | None = None  # (B, T) initial policy
    values: Tensor | None = None  # (B, T)
    scores: Tensor | None = None  # (B,) float64; NaN or infinite = no score
    named_scores: dict[str, Tensor] = field(default_factory=dict)  # (B,) float64, by reward
    texts: FinishedResponses | None = None  # for rewards and people
    packed_rows: Tensor | None = None  # (B,) responses with the same number share a row of a forward pass

    @property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy of the policy that sampled, (B, T) each; not for logged responses."""
        assert self.rollout_logprobs is not None and self.entropy is not None
        return self.rollout_logprobs, self.entropy

    @property
    def logged(self) -> bool:
        """Whether the responses come from data, so that their sampler is unknown."""
        return self.rollout_logprobs is None

    @property
    def scored(self) -> Tensor:
        """(B,) bool: responses that have a score."""
        assert self.scores is not None
        return self.scores.float().isfinite()

    @cached_property
    def sound(self) -> Tensor:
        """(B,) bool: responses whose numbers are finite at every counted token."""
        sound = torch.ones_like(self.ended)
        for numbers in (self.rollout_logprobs, self.reference_logprobs, self.values):
            if numbers is not None:
                sound = sound & (numbers.isfinite() | ~self.response_mask).all(dim=1)
        return sound

    @cached_property
    def kl(self) -> Tensor:
        """k1 estimate of the KL to the initial policy, summed over each response: (B,) nats."""
        assert self.rollout_logprobs is not None and self.reference_logprobs is not None
        return per_response(
            kl_k1(self.rollout_logprobs, self.reference_logprobs, self.response_mask), self.response_mask
        )

    @property
    def batch(self) -> Batch:
        """The inputs of a model's forward pass."""
        return Batch(self.prompt_ids, self.prompt_mask, self.response_ids, self.response_mask, self.packed_rows)

    def microbatches(self, token_budget: int, rows: Tensor | None = None) -> list[Tensor]:
        """Row indices, (n,) each, of micro-batches within the budget, of all rows or of `rows`."""
        rows = torch.arange(len(self.response_ids)) if rows is None else rows
        prompts, responses = (mask.sum(dim=1).cpu()[rows].tolist() for mask in (self.prompt_mask, self.response_mask))
        packed = None if self.packed_rows is None else self.packed_rows.cpu()[rows].tolist()
        device = self.response_mask.device.type
        batches = plan_microbatches(prompts, responses, token_budget, packed=packed, device_type=device)
        return [rows[torch.tensor(batch)] for batch in batches]

    def select(self, rows: Tensor) -> Trajectory:
        """These rows, trimmed to their longest prompt and response, without texts."""
        prompts, responses = self.prompt_mask[rows], self.response_mask[rows]
        P = max(1, int(prompts.sum(dim=1).max()))
        T = max(1, int(responses.sum(dim=1).max()))
        changes: dict[str, Any] = {}
        for own in fields(self):
            tensor = getattr(self, own.name)
            if not isinstance(tensor, Tensor):
                continue
            tensor = tensor[rows]
            if own.name.startswith("prompt_"):
                tensor = tensor[:, -P:]
            elif tensor.dim() == 2:
                tensor = tensor[:, :T]
            changes[own.name] = tensor
        named = {name: scores[rows] for name, scores in self.named_scores.items()}
        return replace(self, **changes, named_scores=named, texts=None)

    def prompt_token_ids(self) -> list[list[int]]:
        """Without padding."""
        return _counted(self.prompt_ids, self.prompt_mask)

    def response_token_ids(self) -> list[list[int]]:
        """The counted tokens."""
        return _counted(self.response_ids, self.response_mask)


def _counted(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
