"""Group-relative policy optimization (GRPO), arXiv:2402.03300, and Dr. GRPO, arXiv:2503.20783."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_non_negative
from apa_cli.algorithms.kl import kl_k3, per_response
from apa_cli.algorithms.objective import Knob, Loss, Objective, Responses
from apa_cli.algorithms.ppo import ppo_clip_fraction, surrogates

__all__ = ["GRPO", "grpo_loss"]

KNOB = ("kl_coef", "β")
DEFAULTS: dict[str, float] = {}


@dataclass(kw_only=True)
class GRPO(Objective):
    """PPO's clipped surrogate and β times the KL to the initial policy, averaged over responses."""

    anchor = "rollout"
    kl_coef: float
    clip_range: float = 0.2
    length_divisor: int | None = None

    def __post_init__(self) -> None:
        self.knob = Knob(key="kl_coef", symbol="β", fixed=self.kl_coef)

    def loss(self, policy_logprobs: Tensor, responses: Responses, advantages: Tensor) -> Loss:
        mask = responses.response_mask
        assert responses.rollout_logprobs is not None and responses.reference_logprobs is not None
        value = grpo_loss(
            policy_logprobs,
            responses.rollout_logprobs,
            responses.reference_logprobs,
            advantages,
            mask,
            clip_range=self.clip_range,
            kl_coef=self.knob.value,
            length_divisor=self.length_divisor,
        )
        fraction = ppo_clip_fraction(
            policy_logprobs, responses.rollout_logprobs, advantages, mask, clip_range=self.clip_range
        )
        tokens = mask.sum()
        return Loss(
            value=value,
            metrics={"objective/clip_fraction": (fraction * tokens, tokens)},
        )

    def count(self, mask: Tensor) -> Tensor:
        """Responses, over which the loss is a mean."""
        return mask.any(dim=1).sum()

    def steer(self, kl: float, responses: int) -> None:
        """β stays as it is."""


def grpo_loss(
    policy_logprobs: Tensor,  # (B, T)
    rollout_logprobs: Tensor,  # (B, T)
    reference_logprobs: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    clip_range: float,
    kl_coef: float,
    length_divisor: int | None = None,
) -> Tensor:
    """The clipped surrogate with a KL penalty, averaged over each response's tokens, then over responses; a scalar.

    L = 1/B Σ_i 1/|y_i| Σ_t [ max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) + β (e^{−d} − 1 + d) ]
    ρ = π_θ / π_rollout, d = log π_θ − log π_ref        Shao et al., arXiv:2402.03300, equations 3 and 4
    With `length_divisor` N it stands in place of |y_i|, so that a token weighs the same in every response: Dr. GRPO
    (Liu et al., arXiv:2503.20783), N being the longest allowed response. B counts the responses with any token.
    Gradient reaches `policy_logprobs` only. An empty mask gives 0.

    Raises ValueError when the shapes differ, clip_range (ε) or length_divisor is not above 0, or kl_coef (β) is
    negative.
    """
    check_non_negative(kl_coef=kl_coef)
    if length_divisor is not None and length_divisor < 1:
        raise ValueError(f"length_divisor must be at least 1, got {length_divisor}")
    unclipped, clipped = surrogates(policy_logprobs, rollout_logprobs, advantages, response_mask, clip_range=clip_range)
    losses = torch.maximum(unclipped, clipped)  # (B, T)
    if kl_coef > 0:
        losses = losses + kl_coef * kl_k3(policy_logprobs, reference_logprobs.detach(), response_mask)
    lengths = response_mask.bool().sum(dim=1)  # (B,)
    divisors = lengths.clamp(min=1) if length_divisor is None else torch.full_like(lengths, length_divisor)
    return (per_response(losses, response_mask) / divisors).sum() / (lengths > 0).sum().clamp(min=1)
