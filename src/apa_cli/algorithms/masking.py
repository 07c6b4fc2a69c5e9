"""Sums, means and whitening over the positions that count.

A mask is positive: True (or any number but 0) means the position counts. Whatever stands at a masked position, NaN and
infinity included, reaches neither a value nor a gradient, because it is replaced by 0 before any arithmetic.
"""

import torch
from torch import Tensor

__all__ = ["MeanAccumulator", "check_same_shape", "masked_mean", "masked_sum", "whiten", "zero_masked"]

WHITEN_EPS = 1e-8
"""Added to the variance by `whiten`, in squared units of its input."""


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have the shape of the first; the message names the one that differs."""
    names = iter(tensors)
    first = next(names, None)
    if first is None:
        return
    expected = tuple(tensors[first].shape)
    for name in names:
        shape = tuple(tensors[name].shape)
        if shape != expected:
            raise ValueError(f"{name} has shape {shape}, but {first} has shape {expected}; they must be equal")


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with 0 at masked positions, as float32 or, where `x` is float64, float64. Gradient there is 0.

    Raises ValueError when the shapes differ.
    """
    check_same_shape(x=x, mask=mask)
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.where(mask.bool(), wide, 0.0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Σ m x over all positions, a scalar; 0 for an empty mask. Raises ValueError when the shapes differ."""
    return zero_masked(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Σ m x / Σ m over all positions, a scalar; 0 (not NaN) for an empty mask, with a gradient of 0.

    Raises ValueError when the shapes differ.
    """
    total = masked_sum(x, mask)
    return total / mask.bool().sum().clamp(min=1).to(total.dtype)


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """(x − mean) / √(var + 1e-8) over counted positions, with the unbiased variance Σ m (x − mean)² / (Σ m − 1).

    x, mask: any equal shapes. The result has the shape of `x`, float32 or float64, and 0 at masked positions.
    shift_mean=False adds the mean back after scaling, so that only the spread about the mean changes.
    Moments are taken in float64. With one counted position, or with all of them equal, there is no spread to divide
    by: the result is 0 there (the mean itself when shift_mean=False), never NaN.

    Raises ValueError when the shapes differ.
    """
    counted = zero_masked(x, mask)
    wide = counted.double()
    count = mask.bool().sum()
    mean = wide.sum() / count.clamp(min=1)
    centred = zero_masked(wide - mean, mask)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    whitened = centred * torch.rsqrt(variance + WHITEN_EPS)
    if not shift_mean:
        whitened = whitened + mean
    return zero_masked(whitened, mask).to(counted.dtype)


class MeanAccumulator:
    """A mean kept as its sum and its count, so that micro-batches of unequal sizes combine exactly.

    Tensors are detached and accumulated in float64 where they are; only `mean` waits for the device.
    """

    def __init__(self) -> None:
        self.total: float | Tensor = 0.0
        self.count: float | Tensor = 0.0

    def add(self, total: float | Tensor, count: float | Tensor) -> None:
        """Take in a sum and the number of things summed."""
        self.total = self.total + (total.detach().double() if isinstance(total, Tensor) else total)
        self.count = self.count + (count.detach().double() if isinstance(count, Tensor) else count)

    def add_masked(self, x: Tensor, mask: Tensor) -> None:
        """Take in the counted positions of `x`. Raises ValueError when the shapes differ."""
        self.add(masked_sum(x, mask), mask.bool().sum())

    def merge(self, other: "MeanAccumulator") -> None:
        """Take in all that `other` has taken in."""
        self.add(other.total, other.count)

    def mean(self) -> float:
        """Sum over count; 0.0 when nothing was counted."""
        count = float(self.count)
        return float(self.total) / count if count else 0.0
