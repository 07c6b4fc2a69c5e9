"""APA as a policy loss of verl, for a copy of yours: it registers itself when verl imports it.

    VERL_USE_EXTERNAL_MODULES=verl_apa python -m verl.trainer.main_ppo \
        actor_rollout_ref.actor.policy_loss.loss_mode=apa actor_rollout_ref.actor.loss_agg_mode=token-mean …

The file must be on the PYTHONPATH of every worker.

The anchor is the rollout policy. verl hands a policy loss `old_log_prob`, the policy at the start of the step, and no
log-probs of the initial policy. So the log-ratio is that to the rollout, as with `objective.anchor=rollout`: each
step is kept near the last policy, and nothing holds the run near the initial one. actor.use_kl_loss=true adds a term of
verl's own that does; it is not APA's.
verl's loss_mode=dro with dro_beta=λ is λ/2 times this loss, but for a constant.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import register_policy_loss

from apa_cli.algorithms import apa_loss, apa_target_residual

KL_LAMBDA = 0.3  # λ; verl's configuration has no key for it


@register_policy_loss("apa")
def apa_policy_loss(
    old_log_prob: Tensor,  # (B, T)
    log_prob: Tensor,  # (B, T)
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Mean over all tokens of the minibatch, of which this may be one micro-batch on one of several ranks.

    Raises ValueError for what APA has no place for.
    """
    if loss_agg_mode != "token-mean":
        raise ValueError(f"APA is a mean over tokens: set loss_agg_mode=token-mean, not {loss_agg_mode}")
    if rollout_is_weights is not None:
        raise ValueError("APA has no importance weights: turn algorithm.rollout_correction off")
    loss = apa_loss(log_prob, old_log_prob, advantages, response_mask, kl_lambda=KL_LAMBDA)
    squares, count = apa_target_residual(log_prob, old_log_prob, advantages, response_mask, kl_lambda=KL_LAMBDA)
    whole = getattr(config, "global_batch_info", {})  # tokens of all micro-batches and ranks, where verl counts them
    if (tokens := whole.get("batch_num_tokens")) is not None:
        loss = loss * count / tokens * whole.get("dp_size", 1)  # verl averages gradients over ranks
    return loss, {"actor/target_residual": (squares / count.clamp(min=1)).sqrt().item()}
