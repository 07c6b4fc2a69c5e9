"""A few short rows to try a model on, and a plain forward pass of each row alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice

import torch
from torch import Tensor

from apa_cli.algorithms import response_logits
from apa_cli.errors import UserError
from apa_cli.models.loading import first_line
from apa_cli.models.policy import Policy, base_of

PROMPTS, RESPONSES = (7, 3, 3, 5), (5, 5, 4, 2)  # tokens of each row; rows 1 and 2 share a prompt
B, P, T = len(PROMPTS), max(PROMPTS), max(RESPONSES)

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
Forward = Callable[[Tensor], Tensor]  # ids (1, L) -> logits or hidden states (1, L, ·)


def trial_batch(policy: Policy) -> Batch:
    """Rows of different lengths with ordinary tokens from the whole vocabulary, padded as in training."""
    device, tokenizer, base = policy.runtime.device, policy.tokenizer, base_of(policy.model)
    known = min(policy.known_ids, base.config.get_text_config().vocab_size)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *policy.eos_token_ids, policy.pad_token_id}
    spread = (int(known * (0.618034 * i % 1)) for i in islice(count(1), 10 * B * (P + T)))
    ordinary = [i for i in spread if i not in special] or [known - 1]
    ids = torch.tensor([ordinary[i % len(ordinary)] for i in range(B * (P + T))], device=device).view(B, P + T)
    ids[2, :P] = ids[1, :P]
    prompt_mask = torch.arange(-P, 0, device=device) >= -torch.tensor(PROMPTS, device=device)[:, None]
    response_mask = torch.arange(T, device=device) < torch.tensor(RESPONSES, device=device)[:, None]
    return torch.where(prompt_mask, ids[:, :P], policy.pad_token_id), prompt_mask, ids[:, P:], response_mask


def each_alone(key: str, family: str, forward: Forward, batch: Batch, tolerance: float) -> Tensor:
    """`forward` of each unpadded row at the positions that predict response tokens: (B, T, ·) float32.

    Raises UserError if that fails, or if the output at a position changes with the tokens after it.
    """
    rows = [torch.cat([ids[mask], response]) for ids, mask, response in zip(*batch[:3], strict=True)]
    other = rows[0].clone()
    other[-1] = rows[1][-1]
    try:
        outputs = [forward(row[None]).float() for row in rows]
        before, changed = outputs[0][:, :-1], forward(other[None]).float()[:, :-1]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # architectures fail in different ways
        problem = f"{family} does not run on token ids ({type(error).__name__}: {first_line(error)})"
        raise UserError(key, problem, "give a causal language model") from error
    if before.isnan().any():
        raise UserError(key, f"{family} gives NaN for ordinary tokens", "use precision=fp32, or another model")
    if not mean_gap(changed, before) <= tolerance * size(before):
        problem = f"{family} reads the tokens that follow, as a masked language model does"
        raise UserError(key, problem, "give a causal language model")
    return torch.cat([response_logits(output, T) for output in outputs])


def size(outputs: Tensor) -> float:
    """Mean magnitude of the finite outputs."""
    return outputs[outputs.isfinite()].abs().mean().item()


def mean_gap(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Mean |a − b|, of (B, T, ...) where `mask` (B, T) is True. Equal infinities differ by 0."""
    difference = torch.where(a == b, 0.0, (a - b).abs().float())
    return (difference if mask is None else difference[mask]).mean().item()


def precision_of(policy: Policy) -> str:
    """The precision of the arithmetic, which half-precision weights lower too."""
    half = policy.runtime.bf16 or any(p.dtype in (torch.bfloat16, torch.float16) for p in policy.model.parameters())
    return "bf16" if half else "fp32"
