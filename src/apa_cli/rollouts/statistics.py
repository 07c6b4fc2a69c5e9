"""What a rollout says of its policy: KL to the initial policy, entropy, lengths, diversity."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from apa_cli.algorithms import kl_k1, kl_k3, masked_mean, per_response
from apa_cli.rollouts.record import Rollout


def response_kl(rollout: Rollout) -> Tensor:
    """k1 summed over each response, (B,) nats."""
    assert rollout.reference_logprobs is not None
    d = kl_k1(rollout.sampled[0], rollout.reference_logprobs, rollout.response_mask)
    return per_response(d, rollout.response_mask)


def rollout_statistics(rollout: Rollout) -> dict[str, float]:
    """kl/* and policy/* of the metric contract for one rollout."""
    assert rollout.reference_logprobs is not None
    mask = rollout.response_mask
    logprobs, entropy = rollout.sampled
    k1 = kl_k1(logprobs, rollout.reference_logprobs, mask)  # (B, T)
    k3 = kl_k3(logprobs, rollout.reference_logprobs, mask)
    responses = [row[keep].tolist() for row, keep in zip(rollout.response_ids.cpu(), mask.cpu(), strict=True)]
    return {
        "kl/to_init": per_response(k1, mask).mean().item(),
        "kl/to_init_per_token": masked_mean(k1, mask).item(),
        "kl/to_init_k3": per_response(k3, mask).mean().item(),
        "policy/entropy": masked_mean(entropy, mask).item(),
        "policy/response_length": mask.sum(dim=1).float().mean().item(),
        "policy/eos_rate": rollout.ended.float().mean().item(),
        "policy/unique_fraction": len({tuple(r) for r in responses}) / len(responses),
        "policy/distinct_2": distinct_n(responses, 2),
    }


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of a batch of responses (Li et al. 2016); 0 when there are none."""
    grams = [tuple(r[i : i + n]) for r in responses for i in range(len(r) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
