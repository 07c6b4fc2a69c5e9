"""Advantage-Induced Policy Alignment (APA), arXiv:2306.02231."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_positive
from apa_cli.algorithms.masking import check_same_shape, masked_mean, masked_sum, zero_masked
from apa_cli.algorithms.objective import Loss, Responses, SteeredObjective

__all__ = ["APA", "apa_bounded_fraction", "apa_loss", "apa_target_residual"]

KNOB = ("kl_lambda", "λ")
DEFAULTS = {"kl_lambda": 0.3, "kl_lambda_min": 0.05}


@dataclass(kw_only=True)
class APA(SteeredObjective):
    """Squared error between the log-ratio to the initial policy and A/λ."""

    target_bound: float | None = None
    huber_delta: float | None = None

    def loss(self, policy_logprobs: Tensor, responses: Responses, advantages: Tensor) -> Loss:
        reference, mask = responses.reference_logprobs, responses.response_mask
        assert reference is not None
        kl_lambda, bound = self.knob.value, self.target_bound
        value = apa_loss(
            policy_logprobs,
            reference,
            advantages,
            mask,
            kl_lambda=kl_lambda,
            target_bound=bound,
            huber_delta=self.huber_delta,
        )
        squares, count = apa_target_residual(
            policy_logprobs, reference, advantages, mask, kl_lambda=kl_lambda, target_bound=bound
        )
        metrics = {"objective/target_residual": (squares, count)}
        if bound is not None:
            fraction = apa_bounded_fraction(advantages, mask, kl_lambda=kl_lambda, target_bound=bound)
            metrics["objective/bounded_fraction"] = (fraction * count, count)
        return Loss(value=value, metrics=metrics)

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """The root of the residual's mean square."""
        return {name: mean**0.5 if name == "objective/target_residual" else mean for name, mean in means.items()}


def apa_loss(
    policy_logprobs: Tensor,  # (B, T)
    reference_logprobs: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    kl_lambda: float,
    target_bound: float | None = None,
    huber_delta: float | None = None,
) -> Tensor:
    """Squared error between the log-ratio and the scaled advantage, a scalar.

    L = Σ m d² / Σ m, d = log π_θ − log π_ref − A/λ        arXiv:2306.02231
    The target π_ref exp(A/λ) maximises E_π[A] − λ KL(π ‖ π_ref) where its normaliser is 1. There is no importance
    ratio, no clipping and no KL term in the reward: λ = kl_lambda alone sets how far the policy may move.
    Gradient reaches `policy_logprobs` only; it is 2 m d / Σ m. An empty mask gives 0.

    Two options, not in the paper, for a λ so small that A/λ asks for log-ratios no policy should have:
    target_bound b, in nats: d = log π_θ − log π_ref − clip(A/λ, −b, b). No token is asked to move further than b.
    huber_delta δ, in nats: where |d| > δ, 2 δ |d| − δ² in place of d². The targets stay; the gradient is
    2 m clip(d, −δ, δ) / Σ m, so that tokens far from their target do not outweigh the rest. (Huber's loss, doubled.)

    Raises ValueError when the shapes differ or kl_lambda, target_bound or huber_delta is not above 0.
    """
    residual = _residual(policy_logprobs, reference_logprobs, advantages, response_mask, kl_lambda, target_bound)
    if huber_delta is None:
        return masked_mean(residual.square(), response_mask)
    check_positive(huber_delta=huber_delta)
    within = residual.clamp(-huber_delta, huber_delta)
    return masked_mean(within * (2 * residual - within), response_mask)


@torch.no_grad()
def apa_target_residual(
    policy_logprobs: Tensor,  # (B, T)
    reference_logprobs: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    kl_lambda: float,
    target_bound: float | None = None,
) -> tuple[Tensor, Tensor]:
    """How far log π_θ is from its target, bounded or not: the sum of squared distances and the token count.

    Add both over all micro-batches; √(sum / count) is then the RMS distance in nats. Two scalars, no gradient.

    Raises ValueError when the shapes differ or kl_lambda or target_bound is not above 0.
    """
    residual = _residual(policy_logprobs, reference_logprobs, advantages, response_mask, kl_lambda, target_bound)
    return masked_sum(residual.square(), response_mask), response_mask.bool().sum()


@torch.no_grad()
def apa_bounded_fraction(
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    kl_lambda: float,
    target_bound: float,
) -> Tensor:
    """Share of counted tokens whose target A/λ lies beyond ± target_bound, a scalar; 0 for an empty mask. No gradient.

    Raises ValueError when the shapes differ or kl_lambda or target_bound is not above 0.
    """
    check_positive(kl_lambda=kl_lambda, target_bound=target_bound)
    beyond = zero_masked(advantages, response_mask).abs() / kl_lambda > target_bound
    return masked_mean(beyond, response_mask)


def _residual(
    policy_logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    kl_lambda: float,
    target_bound: float | None,
) -> Tensor:
    """log π_θ − log π_ref − A/λ, the last bounded where asked, 0 at masked positions: (B, T)."""
    check_same_shape(
        policy_logprobs=policy_logprobs,
        reference_logprobs=reference_logprobs,
        advantages=advantages,
        response_mask=response_mask,
    )
    check_positive(kl_lambda=kl_lambda)
    policy = zero_masked(policy_logprobs, response_mask)
    reference = zero_masked(reference_logprobs.detach(), response_mask)
    target = zero_masked(advantages.detach(), response_mask) / kl_lambda
    if target_bound is not None:
        check_positive(target_bound=target_bound)
        target = target.clamp(-target_bound, target_bound)
    return policy - reference - target
