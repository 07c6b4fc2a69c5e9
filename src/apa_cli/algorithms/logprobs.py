"""From logits to log-probabilities, entropy and exact KL of response tokens.

The shift by one happens here and nowhere else: with P prompt tokens, response token t stands at position P + t and is
predicted by the logits at position P + t − 1. Everywhere else index t is response token t.

The softmax is over the full vocabulary, at the sampling temperature, in float32 (float64 logits stay float64).
Vocabulary-sized temporaries exist for `chunk` tokens at a time.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_positive
from apa_cli.algorithms.masking import check_same_shape

__all__ = ["exact_kl", "position_ids", "response_logits", "response_logprobs", "token_entropy"]

CHUNK = 128
"""Tokens whose vocabulary-sized temporaries exist at the same time (at least one per response)."""


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from each row's first attended token: (B, L) -> (B, L) int64.

    Padding on the left is given 0; padding after the response repeats the last position. Neither is attended to.
    """
    return (attention_mask.bool().long().cumsum(dim=-1) - 1).clamp(min=0)


def response_logits(logits: Tensor, response_length: int) -> Tensor:
    """The logits that predict each response token: a (B, T, V) view of positions P + t − 1.

    logits: (B, L, V) for the whole sequence of L = P + T tokens, or (B, T + 1, V) for its last T + 1 positions.
    response_length: T, at least 1.

    Raises ValueError when fewer than T + 1 positions are given, as the first response token then has no predictor.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits must have shape (B, L, V), got {tuple(logits.shape)}")
    if response_length < 1:
        raise ValueError(f"response_length must be at least 1, got {response_length}")
    if logits.shape[1] < response_length + 1:
        raise ValueError(
            f"logits cover {logits.shape[1]} positions; a response of {response_length} tokens needs at least "
            f"{response_length + 1}, its last prompt token included"
        )
    return logits[:, -response_length - 1 : -1]


def response_logprobs(logits: Tensor, response_ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log π(a_t | s_t) = z_t[a_t] − log Σ_v exp z_t[v] with z = logits / temperature; nats, (B, T).

    logits: (B, T, V), from `response_logits`. response_ids: (B, T); every id, at padding too, lies in 0 … V − 1.
    The only vocabulary-sized tensor this adds is the gradient of `logits`. A token whose gradient is 0 (one that a mask
    leaves out) gives its logits a gradient of exactly 0, whatever they hold. Differentiable once.

    Raises ValueError for shapes that do not fit and for a temperature that is not above 0.
    """
    check_positive(temperature=temperature)
    if logits.ndim != 3 or logits.shape[:2] != response_ids.shape:
        raise ValueError(
            f"logits must have shape (B, T, V) for response_ids of shape (B, T), got {tuple(logits.shape)} and "
            f"{tuple(response_ids.shape)}"
        )
    logprobs = _TokenLogprobs.apply(logits, response_ids.long(), temperature)  # type: ignore[no-untyped-call]
    return cast(Tensor, logprobs)


@torch.no_grad()
def token_entropy(logits: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """Entropy over the whole vocabulary, −Σ_a π(a) log π(a), in nats: (B, T, V) -> (B, T). No gradient.

    A logit of −inf is a token of probability 0 and adds 0.

    Raises ValueError for logits that are not (B, T, V), and for a temperature or chunk that is not above 0.
    """
    _check_vocabulary_arguments(logits, temperature, chunk)
    entropy = torch.empty(logits.shape[:2], dtype=_wide(logits), device=logits.device)
    for tokens in _token_slices(logits, chunk):
        logprobs = _scaled(logits[:, tokens], temperature).log_softmax(dim=-1)
        probabilities = logprobs.exp()
        entropy[:, tokens] = -torch.where(probabilities == 0, 0.0, probabilities * logprobs).sum(dim=-1)
    return entropy


@torch.no_grad()
def exact_kl(
    policy_logits: Tensor, reference_logits: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """KL(π_θ ‖ π_ref) over the whole vocabulary, Σ_a π_θ (log π_θ − log π_ref), in nats: (B, T). No gradient.

    policy_logits, reference_logits: (B, T, V). Both distributions are taken at the same temperature. A token that the
    policy gives probability 0 adds 0; one that only the reference gives probability 0 makes the result infinite.

    Raises ValueError for shapes that differ or are not (B, T, V), and for a temperature or chunk that is not above 0.
    """
    check_same_shape(policy_logits=policy_logits, reference_logits=reference_logits)
    _check_vocabulary_arguments(policy_logits, temperature, chunk)
    dtype = torch.promote_types(_wide(policy_logits), _wide(reference_logits))
    kl = torch.empty(policy_logits.shape[:2], dtype=dtype, device=policy_logits.device)
    for tokens in _token_slices(policy_logits, chunk):
        policy = _scaled(policy_logits[:, tokens].to(dtype), temperature).log_softmax(dim=-1)
        reference = _scaled(reference_logits[:, tokens].to(dtype), temperature).log_softmax(dim=-1)
        probabilities = policy.exp()
        kl[:, tokens] = torch.where(probabilities == 0, 0.0, probabilities * (policy - reference)).sum(dim=-1)
    return kl


class _TokenLogprobs(torch.autograd.Function):
    """Log-softmax at one index per token, chunked both ways: keeps the logits it was given and one number per token."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        normaliser = torch.empty(ids.shape, dtype=_wide(logits), device=logits.device)  # (B, T)
        chosen = torch.empty_like(normaliser)  # (B, T)
        for tokens in _token_slices(logits, CHUNK):
            scaled = _scaled(logits[:, tokens], temperature)
            normaliser[:, tokens] = scaled.logsumexp(dim=-1)
            chosen[:, tokens] = scaled.gather(-1, ids[:, tokens, None]).squeeze(-1)
        ctx.save_for_backward(logits, ids, normaliser)
        ctx.temperature = temperature
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor) -> tuple[Tensor, None, None]:
        # ∂ log π(a) / ∂ logits[v] = (1[v = a] − π(v)) / temperature
        logits, ids, normaliser = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for tokens in _token_slices(logits, CHUNK):
            upstream = grad_logprobs[:, tokens, None]
            grad = _scaled(logits[:, tokens], ctx.temperature).sub_(normaliser[:, tokens, None]).exp_()
            grad.mul_(-upstream).scatter_add_(-1, ids[:, tokens, None], upstream)
            grad_logits[:, tokens] = grad.div_(ctx.temperature).masked_fill_(upstream == 0, 0.0)
        return grad_logits, None, None


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """A fresh float32 or float64 tensor of logits / temperature."""
    return logits.to(_wide(logits)) / temperature


def _token_slices(logits: Tensor, chunk: int) -> Iterator[slice]:
    """Slices of the token axis that hold about `chunk` tokens of the batch; slicing leaves the logits uncopied."""
    step = max(1, chunk // max(1, logits.shape[0]))
    return (slice(start, start + step) for start in range(0, logits.shape[1], step))


def _check_vocabulary_arguments(logits: Tensor, temperature: float, chunk: int) -> None:
    check_positive(temperature=temperature, chunk=chunk)
    if logits.ndim != 3:
        raise ValueError(f"logits must have shape (B, T, V), got {tuple(logits.shape)}")
