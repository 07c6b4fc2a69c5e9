"""A rollout made of logged responses: nothing is sampled, and how likely its sampler found it is not known."""

from __future__ import annotations

import torch
from torch import Tensor

from apa_cli.data.prompts import PromptBatch
from apa_cli.rollouts.record import Rollout
from apa_cli.rollouts.reference_logprobs import ReferenceLogprobs


def logged_rollout(prompts: PromptBatch, reference: ReferenceLogprobs | None, device: torch.device) -> Rollout:
    """The logged responses to `prompts`, with the reference log-probs kept for them."""
    logged = prompts.logged
    assert logged is not None
    mask = logged.response_mask
    rectangle: Tensor | None = None
    if reference is not None:
        rectangle = torch.zeros(mask.shape)  # (B, T)
        for row, index in enumerate(logged.indices):
            logprobs = reference.of(index)
            rectangle[row, : len(logprobs)] = logprobs
        rectangle = rectangle.to(device)
    return Rollout(
        prompt_ids=prompts.prompt_ids.to(device),
        prompt_mask=prompts.prompt_mask.to(device),
        response_ids=logged.response_ids.to(device),
        response_mask=mask.to(device),
        ended=logged.ended.to(device),
        reference_logprobs=rectangle,
    )


def logged_statistics(rollout: Rollout) -> dict[str, float]:
    """logged/* of one rollout. They describe the data, not the policy."""
    return {
        "logged/response_length": rollout.response_mask.sum(dim=1).float().mean().item(),
        "logged/complete_fraction": rollout.ended.float().mean().item(),
    }
