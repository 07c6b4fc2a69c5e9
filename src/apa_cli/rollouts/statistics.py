"""Metrics of a trajectory: rewards, KL to the initial policy, entropy, lengths and diversity."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from torch import Tensor

from apa_cli.algorithms import kl_k1, kl_k3, masked_mean, per_response
from apa_cli.rollouts.trajectory import Trajectory


def trajectory_metrics(trajectory: Trajectory, penalties: Tensor | None = None) -> dict[str, float]:
    """reward/*, kl/* and policy/*; for logged responses logged/*, which describe the data.

    Score metrics use finite scores, all others the responses with only finite numbers. penalties: (B,) for length.
    """
    assert trajectory.scores is not None
    group = "logged" if trajectory.logged else "reward"
    prefix = f"{group}/score_" if trajectory.logged else f"{group}/"
    metrics = _moments(trajectory.scores, f"{prefix}mean", f"{prefix}std")
    sound = trajectory.sound
    part = trajectory
    if bool(sound.any()) and not bool(sound.all()):
        part = trajectory.select(sound.nonzero().flatten().cpu())
    metrics |= logged_statistics(part) if trajectory.logged else rollout_statistics(part)
    for name, scores in trajectory.named_scores.items():
        metrics |= _moments(scores, f"{group}/{name}", f"{group}/{name}_std")
    if penalties is not None:
        metrics[f"{group}/length_penalty"] = penalties.mean().item()
    return metrics


def rollout_statistics(trajectory: Trajectory) -> dict[str, float]:
    """kl/* and policy/* of sampled responses."""
    assert trajectory.reference_logprobs is not None
    mask = trajectory.response_mask
    logprobs, entropy = trajectory.sampled
    k1 = kl_k1(logprobs, trajectory.reference_logprobs, mask)  # (B, T)
    k3 = kl_k3(logprobs, trajectory.reference_logprobs, mask)
    responses = trajectory.response_token_ids()
    return {
        "kl/to_init": trajectory.kl.mean().item(),
        "kl/to_init_per_token": masked_mean(k1, mask).item(),
        "kl/to_init_k3": per_response(k3, mask).mean().item(),
        "policy/entropy": masked_mean(entropy, mask).item(),
        "policy/response_length": mask.sum(dim=1).float().mean().item(),
        "policy/eos_rate": trajectory.ended.float().mean().item(),
        "policy/unique_fraction": len({tuple(r) for r in responses}) / len(responses),
        "policy/distinct_2": distinct_n(responses, 2),
    }


def logged_statistics(trajectory: Trajectory) -> dict[str, float]:
    return {
        "logged/response_length": trajectory.response_mask.sum(dim=1).float().mean().item(),
        "logged/complete_fraction": trajectory.ended.float().mean().item(),
    }


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of a batch of responses (Li et al. 2016); 0 if there are none."""
    grams = [gram for response in responses for gram in ngrams(response, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ngrams(response: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(response[i : i + n]) for i in range(len(response) - n + 1)]


def _moments(scores: Tensor, mean: str, std: str) -> dict[str, float]:
    """Mean and standard deviation of the finite scores of (B,), NaN if there are none."""
    finite = scores[scores.isfinite()].cpu().float()
    return {mean: finite.mean().item(), std: finite.std(correction=0).item() if len(finite) else nan}
