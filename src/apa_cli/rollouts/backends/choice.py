"""From one step's logits to the next tokens, their log-probs and the entropy, with one softmax for all three.

Log-probs and entropy are those of the full softmax at the sampling temperature in float32, even if sampling is
truncated (top-k, top-p, no EOS before min_new_tokens). Logits with NaN give some token with log-prob and entropy NaN;
the caller handles it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from apa_cli.config import schema

RACE_VOCABULARY = 1024
"""Up to this vocabulary size the draw is torch.multinomial's, with V random numbers per row; above it one per row.

A CPU draws them sequentially: 62 ms per step for 64 rows of 50,304, half of all generation time.
"""
BLOCK = {"cpu": 1 << 22, "cuda": 1 << 25}  # logits processed together, with several temporaries of their size
CHUNK = 256  # tokens per chunk of the inverse CDF


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Tokens, log π(token) and entropy in nats, (n,) each."""

    ids: Tensor
    logprobs: Tensor
    entropy: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Choice]) -> Choice:
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})


class TokenChooser:
    """Choose tokens from logits as `config` describes."""

    def __init__(self, config: schema.GenerationConfig, eos_token_ids: list[int], *, greedy: bool) -> None:
        self.temperature = config.temperature
        self.greedy = greedy
        self.min_new_tokens = config.min_new_tokens
        self.eos_token_ids = eos_token_ids
        self.truncate: Any = LogitsProcessorList()
        if config.top_k:
            self.truncate.append(TopKLogitsWarper(config.top_k))
        if config.top_p < 1:
            self.truncate.append(TopPLogitsWarper(config.top_p))

    def noise(self, rows: int, vocabulary: int, device: torch.device) -> Tensor | None:
        """Random numbers of one step for all `rows`, finished ones too, so that rows do not affect each other."""
        if self.greedy:
            return None
        if vocabulary <= RACE_VOCABULARY:
            return torch.empty(rows, vocabulary, device=device).exponential_(1.0)  # (B, V)
        return torch.rand(rows, dtype=torch.float64, device=device)  # (B,)

    def __call__(self, logits: Tensor, noise: Tensor | None, step: int) -> Choice:
        """`logits` (n, V) may be overwritten. `step`: response tokens so far."""
        n, V = logits.shape
        size = max(1, BLOCK["cpu" if logits.device.type == "cpu" else "cuda"] // V)
        parts = [
            self._choose(logits[i : i + size], None if noise is None else noise[i : i + size], step)
            for i in range(0, n, size)
        ]
        return parts[0] if len(parts) == 1 else Choice.joined(parts)

    def _choose(self, logits: Tensor, noise: Tensor | None, step: int) -> Choice:
        before_end = self.eos_token_ids if step < self.min_new_tokens else []
        greedy_ids = None
        if noise is None:
            greedy_ids = _without(logits, before_end).argmax(dim=-1)
        scaled = logits.float() if self.temperature == 1 else logits.float() / self.temperature  # (n, V)
        # relative to the largest logit, and finite, so that a logit of −inf adds 0 to the entropy
        scaled = scaled.sub_(scaled.amax(dim=-1, keepdim=True)).clamp_(min=-1e30)
        probabilities = scaled.softmax(dim=-1)
        normaliser = -probabilities.amax(dim=-1).log()  # (n,) log Σ exp of `scaled`, whose maximum is 0
        entropy = normaliser - torch.linalg.vecdot(probabilities, scaled)
        if greedy_ids is not None:
            ids = greedy_ids
        else:
            assert noise is not None
            if before_end or self.truncate:
                # the processors read the scores only
                kept = self.truncate(None, _without(scaled, before_end))
                probabilities = kept.softmax(dim=-1)
            ids = draw(probabilities, noise)
        logprobs = scaled.gather(-1, ids[:, None]).squeeze(-1) - normaliser
        return Choice(ids=ids, logprobs=logprobs, entropy=entropy)


def draw(probabilities: Tensor, noise: Tensor) -> Tensor:
    """One index per row, (n,), in proportion to `probabilities` (n, V); never one of probability 0.

    Noise of Exp(1), (n, V): the largest of p / noise wins, which is how torch.multinomial draws. Noise of U[0, 1),
    (n,): the inverse of the cumulative distribution.
    """
    if noise.dim() == 2:
        return (probabilities / noise).argmax(dim=-1)
    return inverse_cdf(probabilities, noise)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first index at which the cumulative sum exceeds `uniform` × the whole sum.

    Finds the chunk of the vocabulary, then the token in it, with sums in float64. A float32 cumulative sum over a large
    vocabulary would lose tokens of small probability.
    """
    V = probabilities.shape[1]
    whole = V // CHUNK * CHUNK
    sums = probabilities[:, :whole].unflatten(1, (V // CHUNK, CHUNK)).sum(dim=-1) if whole else probabilities[:, :0]
    if whole < V:
        sums = torch.cat([sums, probabilities[:, whole:].sum(dim=-1, keepdim=True)], dim=1)  # (n, chunks)
    chunk, within = _invert(sums.double(), uniform)
    index = chunk[:, None] * CHUNK + torch.arange(CHUNK, device=probabilities.device)  # (n, CHUNK)
    inside = probabilities.gather(1, index.clamp(max=V - 1)).double()
    token, _ = _invert(torch.where(index < V, inside, 0.0), within)
    return (chunk * CHUNK + token).clamp(max=V - 1)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Index (n,) drawn in proportion to `weights` (n, m), and the place of `uniform` in its share, in [0, 1]."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    target = uniform[:, None] * total
    # if rounding puts the target on the total, take the last index with any weight
    last = torch.searchsorted(cumulative, total, right=False)
    index = torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
    index = index.clamp(max=weights.shape[1] - 1)  # of NaN
    weight = weights.gather(1, index)
    within = (target - (cumulative.gather(1, index) - weight)) / weight
    return index.squeeze(1), within.clamp(0.0, 1.0).squeeze(1)


def _without(logits: Tensor, ids: list[int]) -> Tensor:
    if not ids:
        return logits
    logits = logits.clone()
    logits[:, ids] = -torch.inf
    return logits
