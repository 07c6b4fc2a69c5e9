"""Fitting the critic, and how well it fits."""

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_positive
from apa_cli.algorithms.masking import check_same_shape, masked_mean, masked_sum, zero_masked

__all__ = ["explained_variance", "value_loss"]

NO_SPREAD = 1e-24
"""Variance below this share of the mean square is rounding error of float64: the returns are all the same."""


def value_loss(
    values: Tensor,  # (B, T)
    returns: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    rollout_values: Tensor | None = None,  # (B, T)
    clip_range: float | None = None,
) -> Tensor:
    """Half the mean squared error of the critic, a scalar, optionally clipped around the rollout's values.

    L = ½ Σ m (V − R)² / Σ m        or, with V' = V_rollout + clip(V − V_rollout, −c, c) and c = clip_range,
    L = ½ Σ m max((V − R)², (V' − R)²) / Σ m        as in the PPO of Ziegler et al., arXiv:1909.08593
    Gradient reaches `values` only. An empty mask gives 0.

    Raises ValueError when the shapes differ, when only one of rollout_values and clip_range is given, or when
    clip_range is not above 0.
    """
    check_same_shape(values=values, returns=returns, response_mask=response_mask)
    if (rollout_values is None) != (clip_range is None):
        raise ValueError("rollout_values and clip_range belong together: give both or neither")
    predicted = zero_masked(values, response_mask)
    target = zero_masked(returns.detach(), response_mask)
    squares = (predicted - target).square()
    if rollout_values is not None and clip_range is not None:
        check_same_shape(values=values, rollout_values=rollout_values)
        check_positive(clip_range=clip_range)
        rollout = zero_masked(rollout_values.detach(), response_mask)
        clipped = rollout + (predicted - rollout).clamp(-clip_range, clip_range)
        squares = torch.maximum(squares, (clipped - target).square())
    return 0.5 * masked_mean(squares, response_mask)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R) over counted positions, a float64 scalar: 1 is perfect, 0 no better than a constant.

    0 when there is no variance to explain (fewer than two counted positions, or returns that are all equal).
    No gradient. Compute it over all tokens at once; it does not combine over micro-batches.

    Raises ValueError when the shapes differ.
    """
    check_same_shape(values=values, returns=returns, mask=mask)
    target = zero_masked(returns, mask).double()
    error = target - zero_masked(values, mask).double()
    spread = masked_sum((target - masked_mean(target, mask)).square(), mask)
    unexplained = masked_sum((error - masked_mean(error, mask)).square(), mask)
    has_spread = spread > NO_SPREAD * masked_sum(target.square(), mask)
    return torch.where(has_spread, 1 - unexplained / torch.where(has_spread, spread, 1.0), 0.0)
