"""Log-probabilities straight from the hidden states, without ever holding all logits.

The output head is taken a block at a time: some tokens, some of the vocabulary. A trained head needs three matrix
products of its size at least (logits, gradient of the hidden states, gradient of the weights); making the logits anew
in backward is a fourth. So blocks are kept for backward while they fit into `KEEP_BYTES`, and made anew beyond that. A
frozen head needs two: the gradient of each log-prob by its hidden state is found in the same pass.

    raw = h · Wᵀ + b        z = softcap · tanh(scale · raw / softcap) / temperature        log π(a) = z[a] − log Σ exp z

`scale` and `softcap` are what some architectures do between head and logits (Cohere, Granite; Gemma 2). Products are
made in the dtype of `hidden`, everything after them in float32 (float64 stays float64).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_positive

__all__ = ["head_logits", "head_logprobs"]

TOKENS = 2048
"""Tokens of a block. Each further stretch of tokens reads and writes the gradient of the weights once more."""

CPU_BLOCK = 1 << 22
"""Logits of a block. A quarter is as fast on an idle CPU, and slower on a busy one: threads wait for each other."""

GPU_BLOCK = 1 << 25
"""The same on an accelerator: enough to hide the cost of starting kernels."""

KEEP_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Logits that one call may hold for its backward: little beside what a trunk keeps, so that memory does not grow with
the vocabulary."""


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """log π of one token per hidden state, in nats: (N,).

    hidden: (N, H). weight: (V, H), as nn.Linear has it. bias: (V,) or None. ids: (N,), each in 0 … V − 1.
    Gradients reach hidden, weight and bias, whichever ask for one. Differentiable once.

    Raises ValueError for shapes that do not fit and for a coefficient that is not above 0.
    """
    _check(hidden, weight, bias)
    check_positive(temperature=temperature, scale=scale, softcap=1.0 if softcap is None else softcap)
    if ids.shape != hidden.shape[:1]:
        raise ValueError(f"ids must have shape ({hidden.shape[0]},), got {tuple(ids.shape)}")
    shape = _Logits(scale, softcap, temperature)
    trains = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    function = _TrainedHead if trains else _FrozenHead
    logprobs = function.apply(hidden, weight, bias, ids.long(), shape)  # type: ignore[no-untyped-call]
    return cast(Tensor, logprobs)


def head_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """All logits of a few tokens, (N, V), as the model itself would give them. No gradient.

    Raises ValueError for shapes that do not fit.
    """
    _check(hidden, weight, bias)
    shape = _Logits(scale, softcap, 1.0)
    with torch.no_grad():
        return shape.finish(shape.raw(hidden, weight, bias))


@dataclass(frozen=True)
class _Logits:
    """What lies between the hidden states and the softmax."""

    scale: float
    softcap: float | None
    temperature: float

    def raw(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(n, v) in the dtype of hidden."""
        weight = weight.to(hidden.dtype).t()
        return torch.mm(hidden, weight) if bias is None else torch.addmm(bias.to(hidden.dtype), hidden, weight)

    def finish(self, raw: Tensor) -> Tensor:
        """z, in float32 or float64; in place where raw already is."""
        z = raw.to(_wide(raw))
        if self.softcap is not None:
            return z.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)
        return z if self.slope == 1.0 else z.mul_(self.slope)

    @property
    def slope(self) -> float:
        """∂z / ∂raw, soft cap aside."""
        return self.scale / self.temperature

    def bend(self, z: Tensor) -> Tensor | None:
        """What a soft cap multiplies that slope by: 1 − tanh²; None without one."""
        if self.softcap is None:
            return None
        return z.mul(self.temperature / self.softcap).square_().neg_().add_(1.0)


class _TrainedHead(torch.autograd.Function):
    """Keeps blocks of logits while they fit, and one normaliser per token; makes the other blocks anew."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, shape: _Logits) -> Tensor:
        chosen = torch.empty(ids.shape, dtype=_wide(hidden), device=hidden.device)  # (N,)
        normaliser = torch.empty_like(chosen)  # (N,)
        kept: dict[tuple[int, int], Tensor] = {}
        room = KEEP_BYTES["cpu" if hidden.device.type == "cpu" else "cuda"]
        for tokens in _token_blocks(hidden):
            h, total = hidden[tokens], _RunningSum(chosen[tokens])
            for words in _word_blocks(h, weight):
                raw = shape.raw(h, weight[words], _slice(bias, words))
                z = shape.finish(raw)
                rows, columns = _inside(ids[tokens], words)
                chosen[tokens][rows] = z[rows, columns]
                keep = raw.nbytes <= room
                total.add(z, spare=not (keep and z is raw))
                if keep:
                    kept[tokens.start, words.start] = raw
                    room -= raw.nbytes
            normaliser[tokens] = total.log()
        ctx.save_for_backward(hidden, weight, bias, ids, normaliser)
        ctx.kept, ctx.shape = kept, shape
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # ∂ log π(a) / ∂ raw[v] = (1[v = a] − π(v)) · ∂z/∂raw
        hidden, weight, bias, ids, normaliser = ctx.saved_tensors
        shape: _Logits = ctx.shape
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=_wide(hidden)) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        for tokens in _token_blocks(hidden):
            h, factor = hidden[tokens], (upstream[tokens] * -shape.slope)[:, None]
            for words in _word_blocks(h, weight):
                raw = ctx.kept.pop((tokens.start, words.start), None)
                if raw is None:
                    z = shape.finish(shape.raw(h, weight[words], _slice(bias, words)))
                else:
                    z = raw if raw.dtype == _wide(raw) else shape.finish(raw)
                bend = shape.bend(z)
                grad = z.sub_(normaliser[tokens, None]).exp_()
                rows, columns = _inside(ids[tokens], words)
                grad[rows, columns] -= 1.0
                grad.mul_(factor)
                if bend is not None:
                    grad.mul_(bend)
                if grad_bias is not None:
                    grad_bias[words] += grad.sum(dim=0)
                grad = grad.to(hidden.dtype)
                if grad_hidden is not None:
                    _add_product(grad_hidden[tokens], grad, weight[words].to(hidden.dtype))
                if grad_weight is not None:
                    _add_product(grad_weight[words], grad.t(), h)
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None


class _FrozenHead(torch.autograd.Function):
    """Keeps ∂ log π(a) / ∂ hidden, (N, H): the softmax in it is summed while the blocks pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, shape: _Logits) -> Tensor:
        wide = _wide(hidden)
        logprobs = torch.empty(ids.shape, dtype=wide, device=hidden.device)  # (N,)
        gradient = torch.empty_like(hidden, dtype=wide) if ctx.needs_input_grad[0] else None  # (N, H)
        for tokens in _token_blocks(hidden):
            h, chosen = hidden[tokens], logprobs[tokens]
            total = _RunningSum(chosen)
            chosen_bend = torch.ones_like(chosen)
            mean = None if gradient is None else gradient[tokens].zero_()  # Σ exp(z − top) · bend · W, at last / total
            for words in _word_blocks(h, weight):
                z = shape.finish(shape.raw(h, weight[words], _slice(bias, words)))
                rows, columns = _inside(ids[tokens], words)
                chosen[rows] = z[rows, columns]
                bend = shape.bend(z) if mean is not None else None
                odds, shrink = total.add(z, spare=True)
                if mean is not None:
                    if bend is not None:
                        chosen_bend[rows] = bend[rows, columns]
                        odds.mul_(bend)
                    mean.mul_(shrink[:, None])
                    _add_product(mean, odds.to(hidden.dtype), weight[words].to(hidden.dtype))
            if mean is not None:
                chosen_rows = weight[ids[tokens]].to(wide).mul_(chosen_bend[:, None])  # (n, H)
                mean.div_(-total.sum[:, None]).add_(chosen_rows).mul_(shape.slope)
            chosen.sub_(total.log())
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return logprobs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None]).to(ctx.dtype), None, None, None, None


class _RunningSum:
    """Σ exp z of each token as its blocks pass, relative to the largest z so far."""

    def __init__(self, like: Tensor) -> None:
        self.top = torch.full_like(like, -torch.inf)  # (n,)
        self.sum = torch.zeros_like(like)  # (n,)

    def add(self, z: Tensor, *, spare: bool) -> tuple[Tensor, Tensor]:
        """exp(z − top), (n, v), in the memory of z if that is to spare, and what shrinks all earlier sums, (n,)."""
        top = torch.maximum(self.top, z.amax(dim=-1))
        shrink = (self.top - top).exp_()
        odds = (z.sub_(top[:, None]) if spare else z.sub(top[:, None])).exp_()
        self.top, self.sum = top, self.sum.mul_(shrink).add_(odds.sum(dim=-1))
        return odds, shrink

    def log(self) -> Tensor:
        return self.top + self.sum.log()


def _token_blocks(hidden: Tensor) -> Iterator[slice]:
    return (slice(start, start + TOKENS) for start in range(0, hidden.shape[0], TOKENS))


def _word_blocks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Stretches of the vocabulary whose logits for these tokens make a block."""
    step = max(1, (CPU_BLOCK if hidden.device.type == "cpu" else GPU_BLOCK) // hidden.shape[0])
    return (slice(start, min(start + step, len(weight))) for start in range(0, len(weight), step))


def _inside(ids: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Rows whose id lies in this stretch of the vocabulary, and its place there."""
    rows = ((ids >= words.start) & (ids < words.stop)).nonzero().squeeze(-1)
    return rows, ids[rows] - words.start


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, in place; a product in lower precision is added in that of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))


def _slice(bias: Tensor | None, words: slice) -> Tensor | None:
    return None if bias is None else bias[words]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden (N, H) and weight (V, H) do not fit: got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
