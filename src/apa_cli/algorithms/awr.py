"""Advantage-weighted regression (AWR)."""

from dataclasses import dataclass

from torch import Tensor

from apa_cli.algorithms.checks import check_positive
from apa_cli.algorithms.masking import check_same_shape, masked_mean, zero_masked
from apa_cli.algorithms.objective import Loss, Responses, SteeredObjective

__all__ = ["AWR", "awr_loss"]

KNOB = ("kl_lambda", "λ")
DEFAULTS = {"kl_lambda": 2.0, "kl_lambda_min": 1.0}
HEAVY_LAMBDA = 0.5  # below it exp(A/λ) of an advantage of 3 deviations is 400 times that of the mean


@dataclass(kw_only=True)
class AWR(SteeredObjective):
    """Likelihood of the sampled tokens, weighted by exp(A/λ)."""

    def loss(self, policy_logprobs: Tensor, responses: Responses, advantages: Tensor) -> Loss:
        return Loss(value=awr_loss(policy_logprobs, advantages, responses.response_mask, kl_lambda=self.knob.value))

    def caution(self) -> str | None:
        if self.kl_lambda >= HEAVY_LAMBDA:
            return None
        return (
            f"objective.kl_lambda={self.kl_lambda:g} is small for awr, which weights tokens by "
            "exp(advantage / λ): few tokens hold most of the weight; awr's default is 2"
        )


def awr_loss(
    policy_logprobs: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    kl_lambda: float,
) -> Tensor:
    """Log-likelihood of the sampled tokens weighted by their exponentiated advantage, a scalar.

    L = − Σ m exp(A/λ) log π_θ / Σ m        Peng et al., arXiv:1910.00177; as a baseline in arXiv:2306.02231
    Gradient reaches `policy_logprobs` only; it is − m exp(A/λ) / Σ m. An empty mask gives 0.

    The weight is not clipped. In float32 it overflows to infinity beyond A/λ ≈ 88.7 at a counted token, and so does the
    loss. Whitened advantages stay far below that unless λ is very small.

    Raises ValueError when the shapes differ or kl_lambda is not above 0.
    """
    check_same_shape(policy_logprobs=policy_logprobs, advantages=advantages, response_mask=response_mask)
    check_positive(kl_lambda=kl_lambda)
    weights = (zero_masked(advantages.detach(), response_mask) / kl_lambda).exp()
    return masked_mean(-weights * zero_masked(policy_logprobs, response_mask), response_mask)
