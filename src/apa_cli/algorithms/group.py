"""Advantages without a critic: each response against the others of its prompt, or against the initial policy's."""

import math

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_positive
from apa_cli.algorithms.masking import zero_masked

__all__ = [
    "equal_groups",
    "group_mean",
    "leave_one_out",
    "log_mean_exp",
    "reference_quantile",
    "reference_value",
    "unit_spread",
]

SPREAD_EPS = 1e-8
"""Added to a variance before its root is divided by, in squared units of the scores or advantages."""

DEVIATION_EPS = 1e-4
"""Added to a group's deviation before GRPO divides by it, in units of the scores."""


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
    deviation, √(var + 1e-8), so that prompts whose scores hardly differ weigh as much as others.

    Rows that are not `usable` are nobody's baseline, and their own A is 0, whatever their score. A is exactly 0 in a
    group of equal scores, and where no other row is left to compare with (k = 1 too). Sums are taken in float64; the
    result is float32 or, for float64 scores, float64. No gradient.

    Raises ValueError when the shapes are not (B,) or B is not a multiple of group_size, which is at least 1.
    """
    differences, counts = _differences(scores, group_size, usable)  # (G, k, k), (G, k)
    others = (counts.sum(dim=1, keepdim=True) - 1).clamp(min=1)  # (G, 1)
    advantages = differences.sum(dim=2) / others
    if scale:
        advantages = advantages * torch.rsqrt(_variance(differences, counts) + SPREAD_EPS)[:, None]
    return _as_given(advantages, scores)


@torch.no_grad()
def group_mean(
    scores: Tensor,  # (B,)
    group_size: int,
    *,
    scale: bool = False,
    usable: Tensor | None = None,  # (B,)
) -> Tensor:
    """Each score less the mean of its group, (B,): (k − 1) / k times `leave_one_out`.

    A_i = s_i − Σ_j s_j / k, with `scale` over (σ + 1e-4)        Shao et al., arXiv:2402.03300, section 4.1.2 (GRPO)
    σ is the group's unbiased deviation; the constant is that of TRL's GRPOTrainer. Without `scale` it is the advantage
    of Dr. GRPO (Liu et al., arXiv:2503.20783). Groups, rows that are not usable, precision and errors are as in
    `leave_one_out`.
    """
    differences, counts = _differences(scores, group_size, usable)
    advantages = differences.sum(dim=2) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    if scale:
        advantages = advantages / (_variance(differences, counts).sqrt() + DEVIATION_EPS)[:, None]
    return _as_given(advantages, scores)


@torch.no_grad()
def log_mean_exp(
    scores: Tensor,  # (B,)
    group_size: int,
    *,
    kl_lambda: float,
    usable: Tensor | None = None,  # (B,)
) -> Tensor:
    """Each score less the soft value that the others of its group estimate, (B,).

    A_i = s_i − λ log( Σ_{j≠i} e^{s_j/λ} / (k − 1) )
    The soft value λ log E[e^{r/λ}] lies between the mean (λ → ∞) and the maximum (λ → 0) of the others. λ = `kl_lambda`
    in units of the scores. Groups, rows that are not usable, precision and errors are as in `leave_one_out`.

    Raises ValueError too when kl_lambda is not above 0.
    """
    check_positive(kl_lambda=kl_lambda)
    differences, counts = _differences(scores, group_size, usable)
    others = counts[:, None, :] & ~torch.eye(group_size, dtype=torch.bool, device=counts.device)  # (G, k, k)
    exponents = torch.where(others, -differences / kl_lambda, -math.inf)
    number = others.sum(dim=2).clamp(min=1)
    advantages = -kl_lambda * (exponents.logsumexp(dim=2) - number.double().log())
    return _as_given(torch.where(counts & others.any(dim=2), advantages, 0.0), scores)


@torch.no_grad()
def equal_groups(scores: Tensor, group_size: int, *, usable: Tensor | None = None) -> Tensor:
    """(G,) bool: groups whose usable scores, of `scores` (B,), are all equal: no response is better than another.

    A group with fewer than two usable rows is one too. Raises ValueError as `leave_one_out` does.
    """
    differences, _ = _differences(scores, group_size, usable)
    return ~differences.any(dim=(1, 2))


@torch.no_grad()
def reference_value(
    scores: Tensor,  # (B,)
    reference_scores: Tensor,  # (B, S)
    *,
    kl_lambda: float,
) -> Tensor:
    """Each score less the optimal value of its prompt, (B,).

    A_i = s_i − V*(x_i), V*(x) = λ log mean_s e^{r_s/λ}        arXiv:2505.20686 (A*-PO), first stage
    r_s are the scores of the initial policy's own responses to the prompt, NaN where there is none. λ = `kl_lambda`, in
    units of the scores. A row without a single one is 0. Float64 inside, no gradient.

    Raises ValueError when the shapes do not fit or kl_lambda is not above 0.
    """
    check_positive(kl_lambda=kl_lambda)
    given = _reference(scores, reference_scores)
    exponents = torch.where(given, (reference_scores.double() - scores.double()[:, None]) / kl_lambda, -math.inf)
    advantages = -kl_lambda * (exponents.logsumexp(dim=1) - given.sum(dim=1).clamp(min=1).double().log())
    return torch.where(given.any(dim=1), advantages, 0.0).to(_wide(scores))


@torch.no_grad()
def reference_quantile(
    scores: Tensor,  # (B,)
    reference_scores: Tensor,  # (B, S)
    *,
    kl_lambda: float,
) -> Tensor:
    """Each score's quantile among the initial policy's less the value of such a reward, (B,).

    A_i = q_i − λ log Z, q = share of the r_s that are at most s_i, Z = λ (e^{1/λ} − 1)
    Matrenok et al., arXiv:2507.08068 (QRPO); Z is equation 11. Under the initial policy q is uniform between 0 and 1,
    whatever the reward, which makes Z known. λ = `kl_lambda` is in units of that quantile. The r_s are NaN where there
    is none. A row is 0 without a single one, and where all of them equal its own score, which then says nothing (not in
    the paper). Float64 inside, no gradient.

    Raises ValueError when the shapes do not fit or kl_lambda is not above 0.
    """
    check_positive(kl_lambda=kl_lambda)
    given = _reference(scores, reference_scores)
    beaten = given & (reference_scores.double() <= scores.double()[:, None])
    quantile = beaten.sum(dim=1).double() / given.sum(dim=1).clamp(min=1)
    log_z = math.log(kl_lambda) + 1 / kl_lambda + math.log1p(-math.exp(-1 / kl_lambda))
    differs = given & (reference_scores.double() != scores.double()[:, None])
    return torch.where(differs.any(dim=1), quantile - kl_lambda * log_z, 0.0).to(_wide(scores))


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


def _differences(scores: Tensor, group_size: int, usable: Tensor | None) -> tuple[Tensor, Tensor]:
    """s_i − s_j within each group, (G, k, k) in float64, and which rows count, (G, k). Equal scores give exactly 0."""
    if scores.ndim != 1 or (usable is not None and usable.shape != scores.shape):
        shapes = [tuple(t.shape) for t in (scores, usable) if t is not None]
        raise ValueError(f"scores and usable must have the same shape (B,), got {' and '.join(map(str, shapes))}")
    if group_size < 1 or len(scores) % group_size:
        raise ValueError(f"{len(scores)} scores do not make groups of {group_size}")
    usable = torch.ones_like(scores, dtype=torch.bool) if usable is None else usable.bool()
    grouped = torch.where(usable, scores, 0.0).double().view(-1, group_size)  # (G, k)
    counts = usable.view(-1, group_size)
    pairs = counts[:, :, None] & counts[:, None, :]  # (G, k, k)
    return torch.where(pairs, grouped[:, :, None] - grouped[:, None, :], 0.0), counts


def _variance(differences: Tensor, counts: Tensor) -> Tensor:
    """Unbiased, of each group, (G,): Σ_ij (s_i − s_j)² = 2 n (n − 1) var."""
    n = counts.sum(dim=1)
    return differences.square().sum(dim=(1, 2)) / (2 * n * (n - 1)).clamp(min=1)


def _as_given(advantages: Tensor, scores: Tensor) -> Tensor:
    return advantages.view(-1).to(_wide(scores))


def _wide(scores: Tensor) -> torch.dtype:
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def _reference(scores: Tensor, reference_scores: Tensor) -> Tensor:
    """Which of the (B, S) scores there are."""
    if scores.ndim != 1 or reference_scores.ndim != 2 or len(reference_scores) != len(scores):
        shapes = f"{tuple(scores.shape)} and {tuple(reference_scores.shape)}"
        raise ValueError(f"scores must be (B,) and reference_scores (B, S), got {shapes}")
    return reference_scores.isfinite()
