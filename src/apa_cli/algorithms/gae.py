"""Rewards at the last token, advantages and returns."""

import torch
from torch import Tensor

from apa_cli.algorithms.checks import check_fraction
from apa_cli.algorithms.masking import check_same_shape, zero_masked

__all__ = ["gae", "terminal_rewards"]


@torch.no_grad()
def gae(
    rewards: Tensor,  # (B, T)
    values: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T)
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns that the critic is fitted to, both (B, T).

    δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γ λ A_{t+1}        R_t = A_t + V_t
    Schulman et al., arXiv:1506.02438, equations 11 and 16.

    t + 1 is the next *counted* token. After the last one the episode is over: V and A there are 0, and no value is
    bootstrapped. Masked positions contribute nothing and are 0 in both results. A is not whitened; R is made from it as
    it is. No gradient.

    Raises ValueError when the shapes differ, are not (B, T), or when gamma or gae_lambda lies outside [0, 1].
    """
    check_same_shape(rewards=rewards, values=values, response_mask=response_mask)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have shape (B, T), got {tuple(rewards.shape)}")
    check_fraction(gamma=gamma, gae_lambda=gae_lambda)
    counts = response_mask.bool()
    rewards, values = zero_masked(rewards, counts), zero_masked(values, counts)

    advantages = torch.zeros_like(rewards + values)  # (B, T)
    next_value = torch.zeros_like(advantages[:, :1])  # (B, 1)
    next_advantage = torch.zeros_like(next_value)  # (B, 1)
    for t in reversed(range(rewards.shape[1])):
        now = slice(t, t + 1)
        delta = rewards[:, now] + gamma * next_value - values[:, now]
        advantage = delta + gamma * gae_lambda * next_advantage
        advantages[:, now] = torch.where(counts[:, now], advantage, 0.0)
        next_advantage = torch.where(counts[:, now], advantage, next_advantage)
        next_value = torch.where(counts[:, now], values[:, now].to(next_value.dtype), next_value)
    return advantages, advantages + values


def terminal_rewards(scores: Tensor, response_mask: Tensor) -> Tensor:
    """One score per response, given at its last counted token: (B,) and (B, T) -> (B, T), 0 elsewhere.

    A response without counted tokens gets no reward at all, whatever its score.

    Raises ValueError when response_mask is not (B, T) or scores is not (B,).
    """
    if response_mask.ndim != 2 or scores.shape != response_mask.shape[:1]:
        raise ValueError(
            f"scores must have shape (B,) for a response_mask of shape (B, T), got {tuple(scores.shape)} and "
            f"{tuple(response_mask.shape)}"
        )
    counts = response_mask.bool()
    remaining = counts.long().flip(-1).cumsum(dim=-1).flip(-1)  # (B, T) counted tokens from t to the end
    return zero_masked(scores[:, None].expand(response_mask.shape), counts & (remaining == 1))
