"""Proximal policy optimisation (PPO) with a KL penalty in the reward."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_non_negative, check_positive
from apa_cli.algorithms.gae import terminal_rewards
from apa_cli.algorithms.kl import kl_k1
from apa_cli.algorithms.masking import check_same_shape, masked_mean, zero_masked
from apa_cli.algorithms.objective import Knob, Loss, Objective, Responses
from apa_cli.algorithms.value import value_loss

__all__ = ["PPO", "AdaptiveKLCoefficient", "kl_shaped_rewards", "ppo_clip_fraction", "ppo_loss"]

KNOB = ("kl_coef", "β")
DEFAULTS: dict[str, float] = {}


@dataclass(kw_only=True)
class PPO(Objective):
    """The clipped surrogate on the KL-shaped reward; the critic clipped around the rollout's values.

    With level "sequence" the ratio is that of the whole response, as in RLOO (arXiv:2402.14740).
    """

    anchor = "rollout"
    level: str = "token"
    kl_coef: float
    kl_target: float | None = None
    kl_horizon: float = 10_000
    clip_range: float = 0.2
    value_clip_range: float | None = 0.2

    def __post_init__(self) -> None:
        self._adaptive = None
        if self.kl_target is not None:
            self._adaptive = AdaptiveKLCoefficient(self.kl_coef, target=self.kl_target, horizon=self.kl_horizon)
        self.knob = Knob(key="kl_coef", symbol="β", fixed=self.kl_coef, rule=self._adaptive)

    def token_rewards(self, scores: Tensor, responses: Responses, mask: Tensor) -> Tensor:
        """The score at the last counted token, less β times the log-ratio at each."""
        assert responses.rollout_logprobs is not None and responses.reference_logprobs is not None
        return kl_shaped_rewards(
            scores, responses.rollout_logprobs, responses.reference_logprobs, mask, kl_coef=self.knob.value
        )

    def loss(self, policy_logprobs: Tensor, responses: Responses, advantages: Tensor) -> Loss:
        assert responses.rollout_logprobs is not None
        mask, (policy, rollout) = self.units(responses.response_mask, policy_logprobs, responses.rollout_logprobs)
        batch = policy, rollout, advantages, mask  # (B, U)
        fraction, count = ppo_clip_fraction(*batch, clip_range=self.clip_range), mask.sum()
        return Loss(
            value=ppo_loss(*batch, clip_range=self.clip_range),
            metrics={"objective/clip_fraction": (fraction * count, count)},
        )

    def value_loss(self, values: Tensor, responses: Responses, returns: Tensor) -> Tensor:
        mask, clip_range = responses.response_mask, self.value_clip_range
        if clip_range is None:
            return value_loss(values, returns, mask)
        return value_loss(values, returns, mask, rollout_values=responses.values, clip_range=clip_range)

    def steer(self, kl: float, responses: int) -> None:
        if self._adaptive is not None:
            self._adaptive.update(kl, responses)


def ppo_loss(
    policy_logprobs: Tensor,  # (B, T)
    rollout_logprobs: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    clip_range: float,
) -> Tensor:
    """The clipped surrogate, a scalar.

    L = Σ m max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) / Σ m, ρ = π_θ / π_rollout        Schulman et al., arXiv:1707.06347
    Gradient reaches `policy_logprobs` only; it is − m A ρ / Σ m, or 0 where the clipped term is the larger.
    An empty mask gives 0.

    Raises ValueError when the shapes differ or clip_range (ε) is not above 0.
    """
    unclipped, clipped = surrogates(policy_logprobs, rollout_logprobs, advantages, response_mask, clip_range=clip_range)
    return masked_mean(torch.maximum(unclipped, clipped), response_mask)


@torch.no_grad()
def ppo_clip_fraction(
    policy_logprobs: Tensor,  # (B, T)
    rollout_logprobs: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    clip_range: float,
) -> Tensor:
    """Share of counted tokens at which clipping takes the gradient away, a scalar. No gradient.

    These are the tokens with ρ > 1 + ε and A > 0, or ρ < 1 − ε and A < 0. An empty mask gives 0.

    Raises ValueError when the shapes differ or clip_range (ε) is not above 0.
    """
    unclipped, clipped = surrogates(policy_logprobs, rollout_logprobs, advantages, response_mask, clip_range=clip_range)
    return masked_mean(clipped > unclipped, response_mask)


def kl_shaped_rewards(
    scores: Tensor,  # (B,)
    rollout_logprobs: Tensor,  # (B, T)
    reference_logprobs: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    kl_coef: float,
) -> Tensor:
    """Per-token rewards of RLHF with PPO: (B, T), 0 at masked positions, no gradient.

    r_t = −β (log π_rollout − log π_ref) + [t is the last counted token] · score
    Ziegler et al., arXiv:1909.08593, equation 2. β = kl_coef, in score units per nat.

    Raises ValueError when the shapes do not fit or kl_coef is negative.
    """
    check_same_shape(
        rollout_logprobs=rollout_logprobs, reference_logprobs=reference_logprobs, response_mask=response_mask
    )
    check_non_negative(kl_coef=kl_coef)
    penalty = kl_coef * kl_k1(rollout_logprobs.detach(), reference_logprobs.detach(), response_mask)
    return terminal_rewards(scores.detach(), response_mask) - penalty


class AdaptiveKLCoefficient:
    """The KL coefficient β of `kl_shaped_rewards`, steered towards a target KL.

    error = clip(KL / target − 1, −0.2, 0.2)        β ← β (1 + error · n / horizon)
    Ziegler et al., arXiv:1909.08593, section 2.2. n counts responses, so `horizon` is in responses too.

    value: β to start from, above 0; it can be read at any time.
    target: nats per response. horizon: responses. The state to save is β alone; target and horizon are configuration.

    Raises ValueError when one of the three is not above 0.
    """

    MAX_ERROR = 0.2

    def __init__(self, value: float, *, target: float, horizon: float) -> None:
        check_positive(value=value, target=target, horizon=horizon)
        self.value = float(value)
        self.target = float(target)
        self.horizon = float(horizon)

    def update(self, kl: float, responses: int) -> None:
        """Move β after `responses` responses whose mean KL was `kl`, in nats per response.

        Raises ValueError when kl is not finite, when responses is negative, or when there are so many responses to the
        horizon (five times as many) that one step could take β to 0 or below.
        """
        if not math.isfinite(kl):
            raise ValueError(f"kl must be finite, got {kl}")
        check_non_negative(responses=responses)
        if self.MAX_ERROR * responses >= self.horizon:
            raise ValueError(f"horizon {self.horizon} is too short for {responses} responses in one update")
        error = min(max(kl / self.target - 1, -self.MAX_ERROR), self.MAX_ERROR)
        self.value *= 1 + error * responses / self.horizon

    def state_dict(self) -> dict[str, float]:
        """β, for a checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take β from a checkpoint. Raises KeyError when it is missing and ValueError when it is not above 0."""
        check_positive(value=state["value"])
        self.value = float(state["value"])


def surrogates(
    policy_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_range: float,
) -> tuple[Tensor, Tensor]:
    """−A ρ and −A clip(ρ, 1 − ε, 1 + ε), 0 at masked positions: (B, T) each."""
    check_same_shape(
        policy_logprobs=policy_logprobs,
        rollout_logprobs=rollout_logprobs,
        advantages=advantages,
        response_mask=response_mask,
    )
    check_positive(clip_range=clip_range)
    rollout = zero_masked(rollout_logprobs.detach(), response_mask)
    ratio = (zero_masked(policy_logprobs, response_mask) - rollout).exp()
    advantage = zero_masked(advantages.detach(), response_mask)
    return -advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
