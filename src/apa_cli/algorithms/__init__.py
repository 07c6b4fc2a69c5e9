"""Tensor maths of RLHF: masking, log-probs, KL, GAE, and the APA, AWR, PPO, GRPO and value objectives.

Tensors are (B, T), index t being response token t, with a (B, T) mask of the tokens that count (bool, or 0 and 1).
Log-probs, KL and entropy are in nats. Needs torch and nothing else.
"""

from apa_cli.algorithms.adaptive import SteeredLambda
from apa_cli.algorithms.apa import apa_loss, apa_target_residual, bound_advantages
from apa_cli.algorithms.awr import awr_loss
from apa_cli.algorithms.gae import gae, terminal_rewards
from apa_cli.algorithms.group import (
    equal_groups,
    group_mean,
    leave_one_out,
    log_mean_exp,
    reference_quantile,
    reference_value,
    unit_spread,
)
from apa_cli.algorithms.grpo import grpo_loss
from apa_cli.algorithms.head import head_logits, head_logprobs
from apa_cli.algorithms.kl import kl_k1, kl_k3, per_response
from apa_cli.algorithms.logprobs import exact_kl, position_ids, response_logits, response_logprobs, token_entropy
from apa_cli.algorithms.masking import (
    MeanAccumulator,
    check_same_shape,
    masked_mean,
    masked_sum,
    whiten,
    zero_masked,
)
from apa_cli.algorithms.objective import Knob, Loss, Objective, Targets, make_objective
from apa_cli.algorithms.ppo import AdaptiveKLCoefficient, kl_shaped_rewards, ppo_clip_fraction, ppo_loss
from apa_cli.algorithms.scaling import RunningMoments, RunningMomentsState, scale_scores
from apa_cli.algorithms.value import explained_variance, value_loss

__all__ = [
    "AdaptiveKLCoefficient",
    "Knob",
    "Loss",
    "MeanAccumulator",
    "Objective",
    "RunningMoments",
    "RunningMomentsState",
    "SteeredLambda",
    "Targets",
    "apa_loss",
    "apa_target_residual",
    "awr_loss",
    "bound_advantages",
    "check_same_shape",
    "equal_groups",
    "exact_kl",
    "explained_variance",
    "gae",
    "group_mean",
    "grpo_loss",
    "head_logits",
    "head_logprobs",
    "kl_k1",
    "kl_k3",
    "kl_shaped_rewards",
    "leave_one_out",
    "log_mean_exp",
    "make_objective",
    "masked_mean",
    "masked_sum",
    "per_response",
    "position_ids",
    "ppo_clip_fraction",
    "ppo_loss",
    "reference_quantile",
    "reference_value",
    "response_logits",
    "response_logprobs",
    "scale_scores",
    "terminal_rewards",
    "token_entropy",
    "unit_spread",
    "value_loss",
    "whiten",
    "zero_masked",
]
