"""Advantage-Induced Policy Alignment (APA), arXiv:2306.02231."""

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_positive
from apa_cli.algorithms.masking import check_same_shape, masked_mean, masked_sum, zero_masked

__all__ = ["apa_loss", "apa_target_residual"]


def apa_loss(
    policy_logprobs: Tensor,  # (B, T)
    reference_logprobs: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    kl_lambda: float,
) -> Tensor:
    """Squared error between the log-ratio and the scaled advantage, a scalar.

    L = Σ m (log π_θ − log π_ref − A/λ)² / Σ m        arXiv:2306.02231
    The target π_ref exp(A/λ) maximises E_π[A] − λ KL(π ‖ π_ref) where its normaliser is 1. There is no importance
    ratio, no clipping and no KL term in the reward: λ = kl_lambda alone sets how far the policy may move.
    Gradient reaches `policy_logprobs` only; it is 2 m (log π_θ − log π_ref − A/λ) / Σ m. An empty mask gives 0.

    Raises ValueError when the shapes differ or kl_lambda is not above 0.
    """
    residual = _residual(policy_logprobs, reference_logprobs, advantages, response_mask, kl_lambda)
    return masked_mean(residual.square(), response_mask)


@torch.no_grad()
def apa_target_residual(
    policy_logprobs: Tensor,  # (B, T)
    reference_logprobs: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    kl_lambda: float,
) -> tuple[Tensor, Tensor]:
    """How far log π_θ is from its target log π_ref + A/λ: the sum of squared distances and the token count.

    Add both over all micro-batches; √(sum / count) is then the RMS distance in nats. Two scalars, no gradient.

    Raises ValueError when the shapes differ or kl_lambda is not above 0.
    """
    residual = _residual(policy_logprobs, reference_logprobs, advantages, response_mask, kl_lambda)
    return masked_sum(residual.square(), response_mask), response_mask.bool().sum()


def _residual(
    policy_logprobs: Tensor, reference_logprobs: Tensor, advantages: Tensor, response_mask: Tensor, kl_lambda: float
) -> Tensor:
    """log π_θ − log π_ref − A/λ, 0 at masked positions: (B, T)."""
    check_same_shape(
        policy_logprobs=policy_logprobs,
        reference_logprobs=reference_logprobs,
        advantages=advantages,
        response_mask=response_mask,
    )
    check_positive(kl_lambda=kl_lambda)
    policy = zero_masked(policy_logprobs, response_mask)
    reference = zero_masked(reference_logprobs.detach(), response_mask)
    return policy - reference - zero_masked(advantages.detach(), response_mask) / kl_lambda
