"""The squared error between a log-ratio and an advantage: APA (arXiv:2306.02231), and its family.

APA regresses each token's log-ratio to the initial policy onto A/λ. Its relatives choose otherwise in three respects:
the unit (tokens, or whole responses), the anchor (initial policy, or the one that sampled), and the advantage. DRO,
policy mirror descent, GVPO, A*-PO and QRPO are such choices; docs/family.md lists them with their papers.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_positive
from apa_cli.algorithms.masking import check_same_shape, masked_mean, masked_sum, zero_masked
from apa_cli.algorithms.objective import Advantage, Loss, Responses, SteeredObjective, Targets

__all__ = ["APA", "apa_loss", "apa_target_residual", "bound_advantages"]

KNOB = ("kl_lambda", "λ")
DEFAULTS = {"kl_lambda": 0.3, "kl_lambda_min": 0.05}


@dataclass(kw_only=True)
class APA(SteeredObjective):
    """Squared error between the log-ratio to the anchor and A/λ, by token or by response."""

    level: str = "token"
    anchor: str = "initial"
    target_bound: float | None = None
    huber_delta: float | None = None

    def targets(
        self,
        responses: Responses,
        scores: Tensor,
        usable: Tensor,
        advantage: Advantage,
        *,
        group_size: int,
        reference_scores: Tensor | None = None,
    ) -> Targets:
        """Within ± λ · target_bound: each clipped with a critic, else scaled by one factor for the group."""
        made = super().targets(
            responses, scores, usable, advantage, group_size=group_size, reference_scores=reference_scores
        )
        if self.target_bound is None:
            return made
        together = None if advantage.name == "gae" else group_size
        bounded = bound_advantages(made.advantages, self.target_bound * self.knob.value, together)
        changed = (bounded != made.advantages) & self.units(responses.response_mask & made.usable[:, None])[0]
        share = masked_mean(changed, self.units(responses.response_mask)[0])
        return replace(made, advantages=bounded, metrics={"objective/bounded_fraction": share.item()})

    def loss(self, policy_logprobs: Tensor, responses: Responses, advantages: Tensor) -> Loss:
        mask, (policy, anchor) = self.units(
            responses.response_mask, policy_logprobs, self.anchor_logprobs(responses)
        )  # (B, U)
        settings = {"kl_lambda": self.knob.value}
        return Loss(
            value=apa_loss(policy, anchor, advantages, mask, huber_delta=self.huber_delta, **settings),
            metrics={"objective/target_residual": apa_target_residual(policy, anchor, advantages, mask, **settings)},
        )

    def group_targets(self, advantages: Tensor, log_ratios: Tensor, groups: Tensor) -> Tensor:
        """A + λ ℓ̄ (b, 1), ℓ̄ the mean log-ratio of the row's group in this minibatch: the target of GVPO.

        The residuals ℓ_i − ℓ̄ − (r_i − r̄)/λ of a group sum to zero, so that the gradient through ℓ̄ vanishes.
        """
        _, place, count = torch.unique(groups, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(count), 1, dtype=log_ratios.dtype, device=log_ratios.device)
        means: Tensor = sums.index_add(0, place, log_ratios) / count[:, None]  # (G, 1)
        return advantages + self.knob.value * means[place]

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
    huber_delta: float | None = None,
) -> Tensor:
    """Squared error between the log-ratio and the scaled advantage, a scalar.

    L = Σ m d² / Σ m, d = log π_θ − log π_ref − A/λ        arXiv:2306.02231
    The target π_ref exp(A/λ) maximises E_π[A] − λ KL(π ‖ π_ref) where its normaliser is 1. There is no importance
    ratio, no clipping and no KL term in the reward: λ = kl_lambda alone sets how far the policy may move.
    Gradient reaches `policy_logprobs` only; it is 2 m d / Σ m. An empty mask gives 0.

    With the log-probs summed over each response, (B, 1), it is the loss of the methods that regress whole responses.

    An option that is not in the paper, for a λ so small that A/λ asks for log-ratios no policy should have:
    huber_delta δ, in nats: where |d| > δ, 2 δ |d| − δ² in place of d². The targets stay; the gradient is
    2 m clip(d, −δ, δ) / Σ m, so that tokens far from their target do not outweigh the rest. (Huber's loss, doubled.)

    Raises ValueError when the shapes differ or kl_lambda or huber_delta is not above 0.
    """
    residual = _residual(policy_logprobs, reference_logprobs, advantages, response_mask, kl_lambda)
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
) -> tuple[Tensor, Tensor]:
    """How far log π_θ is from its target: the sum of squared distances and the token count.

    Add both over all micro-batches; √(sum / count) is then the RMS distance in nats. Two scalars, no gradient.

    Raises ValueError when the shapes differ or kl_lambda is not above 0.
    """
    residual = _residual(policy_logprobs, reference_logprobs, advantages, response_mask, kl_lambda)
    return masked_sum(residual.square(), response_mask), response_mask.bool().sum()


@torch.no_grad()
def bound_advantages(advantages: Tensor, bound: float, group_size: int | None) -> Tensor:
    """Advantages (B, U) within ± bound. No gradient.

    group_size k: rows i·k … i·k + k − 1 are scaled by one factor. Clipping each would change their proportions: of one
    right answer among eight with A = 1 against −1/7 it could leave 3 against −3 for each of the other seven, and push
    the group down as a whole. None, for a critic's advantages: each is clipped, as one factor for all would follow the
    largest of thousands of tokens.

    Raises ValueError when B is not a multiple of group_size or bound is not above 0.
    """
    check_positive(bound=bound)
    if group_size is None:
        return advantages.clamp(-bound, bound)
    if group_size < 1 or len(advantages) % group_size:
        raise ValueError(f"{len(advantages)} rows do not make groups of {group_size}")
    largest = advantages.abs().reshape(-1, group_size * advantages.shape[1]).amax(dim=1)  # (G,)
    factors = (bound / largest).clamp(max=1).repeat_interleave(group_size)  # (B,); bound / 0 is infinite
    return advantages * factors[:, None]


def _residual(
    policy_logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    kl_lambda: float,
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
    target = zero_masked(advantages.detach(), response_mask) / kl_lambda
    return policy - reference - target
