"""The record of one rollout: the responses, who gave them, and how likely they were."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from apa_cli.models.microbatches import plan_microbatches


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """B responses as plain tensors, split by rows at will. Log-probs are nats in float32; no gradients."""

    prompt_ids: Tensor  # (B, P) left-padded
    prompt_mask: Tensor  # (B, P) bool
    response_ids: Tensor  # (B, T) the sampled or logged ids
    response_mask: Tensor  # (B, T) bool, True up to and including the first EOS or the stop string's last token
    ended: Tensor  # (B,) bool, False = cut at max_new_tokens
    rollout_logprobs: Tensor | None = None  # (B, T) policy that sampled; None of logged responses
    entropy: Tensor | None = None  # (B, T) of that policy, over the whole vocabulary; None of logged responses
    reference_logprobs: Tensor | None = None  # (B, T) initial policy
    values: Tensor | None = None  # (B, T)

    @property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy of the policy that sampled, (B, T) each: there are none of logged responses."""
        assert self.rollout_logprobs is not None and self.entropy is not None
        return self.rollout_logprobs, self.entropy

    @property
    def logged(self) -> bool:
        """Whether data held the responses, so that nobody knows who gave them."""
        return self.rollout_logprobs is None

    @property
    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a model's forward takes."""
        return self.prompt_ids, self.prompt_mask, self.response_ids, self.response_mask

    def microbatches(self, token_budget: int, rows: Tensor | None = None) -> list[Tensor]:
        """Row indices, (n,) each, of micro-batches within the budget; of all rows, or of these."""
        rows = torch.arange(len(self.response_ids)) if rows is None else rows
        prompts, responses = (mask.sum(dim=1).cpu()[rows].tolist() for mask in (self.prompt_mask, self.response_mask))
        device = self.response_mask.device.type
        batches = plan_microbatches(prompts, responses, token_budget, device_type=device)
        return [rows[torch.tensor(batch)] for batch in batches]

    def select(self, rows: Tensor) -> Rollout:
        """These rows, trimmed to their own longest prompt and response."""
        prompts, responses = self.prompt_mask[rows], self.response_mask[rows]
        P = max(1, int(prompts.sum(dim=1).max()))
        T = max(1, int(responses.sum(dim=1).max()))
        changes: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is None:
                continue
            tensor = tensor[rows]
            if field.name.startswith("prompt_"):
                tensor = tensor[:, -P:]
            elif tensor.dim() == 2:
                tensor = tensor[:, :T]
            changes[field.name] = tensor
        return replace(self, **changes)

    def prompt_token_ids(self) -> list[list[int]]:
        """Without padding."""
        return _counted(self.prompt_ids, self.prompt_mask)

    def response_token_ids(self) -> list[list[int]]:
        """Those that count."""
        return _counted(self.response_ids, self.response_mask)


def _counted(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
