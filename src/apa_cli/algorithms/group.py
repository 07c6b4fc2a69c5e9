"""Advantages without a critic: each response against the others of its prompt."""

import torch
from torch import Tensor

from apa_cli.algorithms.masking import zero_masked

__all__ = ["leave_one_out", "unit_spread"]

SPREAD_EPS = 1e-8
"""Added to a variance before its root is divided by, in squared units of the scores or advantages."""


@torch.no_grad()
def leave_one_out(
    scores: Tensor,  # (B,)
    group_size: int,
    *,
    scale: bool = False,
    usable: Tensor | None = None,  # (B,)
) -> Tensor:
    """Each score less the mean of the others in its group, (B,).

    A_i = s_i − Σ_{j≠i} s_j / (k − 1)        Ahmadian et al., arXiv:2402.14740, section 3.2 (RLOO)
    Rows i·k … i·k + k − 1 are one group: k = `group_size` responses to one prompt. The baseline does not depend on the
    response itself, so it leaves the policy gradient's expectation as it is. `scale` divides by the group's unbiased
    deviation, √(var + 1e-8): with that A is k / (k − 1) times that of GRPO (Shao et al., arXiv:2402.03300, section
    4.1.2), and prompts whose scores hardly differ weigh as much as others.

    Rows that are not `usable` are nobody's baseline, and their own A is 0, whatever their score. A is exactly 0 in a
    group of equal scores, and where no other row is left to compare with (k = 1 too). Sums are taken in float64; the
    result is float32 or, for float64 scores, float64. No gradient.

    Raises ValueError when the shapes are not (B,) or B is not a multiple of group_size, which is at least 1.
    """
    if scores.ndim != 1 or (usable is not None and usable.shape != scores.shape):
        shapes = [tuple(t.shape) for t in (scores, usable) if t is not None]
        raise ValueError(f"scores and usable must have the same shape (B,), got {' and '.join(map(str, shapes))}")
    if group_size < 1 or len(scores) % group_size:
        raise ValueError(f"{len(scores)} scores do not make groups of {group_size}")
    usable = torch.ones_like(scores, dtype=torch.bool) if usable is None else usable.bool()
    grouped = torch.where(usable, scores, 0.0).double().view(-1, group_size)  # (G, k)
    counts = usable.view(-1, group_size)
    pairs = counts[:, :, None] & counts[:, None, :]  # (G, k, k)
    differences = torch.where(pairs, grouped[:, :, None] - grouped[:, None, :], 0.0)  # s_i − s_j: equal scores give 0
    others = (counts.sum(dim=1, keepdim=True) - 1).clamp(min=1)  # (G, 1)
    advantages = differences.sum(dim=2) / others
    if scale:
        n = counts.sum(dim=1)  # Σ_ij (s_i − s_j)² = 2 n (n − 1) var
        variance = differences.square().sum(dim=(1, 2)) / (2 * n * (n - 1)).clamp(min=1)  # (G,)
        advantages = advantages * torch.rsqrt(variance + SPREAD_EPS)[:, None]
    return advantages.view(-1).to(torch.float64 if scores.dtype == torch.float64 else torch.float32)


@torch.no_grad()
def unit_spread(x: Tensor, mask: Tensor) -> Tensor:
    """x / √(Σ m x² / Σ m + 1e-8) over counted positions: a root mean square of 1, and 0 stays 0.

    What `whiten` is where 0 means something: no better than the others of the group. Subtracting a mean over tokens,
    in which long responses weigh more, would move it. x, mask: equal shapes; the result is float32 or float64, and 0
    at masked positions. The moment is taken in float64. No gradient.

    Raises ValueError when the shapes differ.
    """
    counted = zero_masked(x, mask)
    square = counted.double().square().sum() / mask.bool().sum().clamp(min=1)
    return (counted.double() * torch.rsqrt(square + SPREAD_EPS)).to(counted.dtype)
