"""Estimates of KL(π_θ ‖ π_ref) from tokens sampled from π_θ.

With d = log π_θ(a|s) − log π_ref(a|s) at a sampled token, both k1 = d and k3 = e^{−d} − 1 + d have the expectation
Σ_a π_θ log (π_θ/π_ref). k1 may be negative; k3 never is, and usually varies less. Source: J. Schulman, "Approximating
KL Divergence" (2020). The sign in the exponent is that of samples from π_θ: e^{d} − 1 − d has the expectation
χ²(π_θ ‖ π_ref) − KL(π_θ ‖ π_ref) instead. For the exact value from logits see `logprobs.exact_kl`.
"""

from torch import Tensor

from apa_cli.algorithms.masking import check_same_shape, zero_masked

__all__ = ["kl_k1", "kl_k3", "per_response"]


def kl_k1(policy_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """d = log π_θ − log π_ref at each counted token, 0 elsewhere; nats, (B, T).

    Raises ValueError when the shapes differ.
    """
    check_same_shape(policy_logprobs=policy_logprobs, reference_logprobs=reference_logprobs, mask=mask)
    return zero_masked(policy_logprobs, mask) - zero_masked(reference_logprobs, mask)


def kl_k3(policy_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """e^{−d} − 1 + d ≥ 0 at each counted token, with d = log π_θ − log π_ref, 0 elsewhere; nats, (B, T).

    Raises ValueError when the shapes differ.
    """
    log_ratio = kl_k1(policy_logprobs, reference_logprobs, mask)
    return (-log_ratio).expm1() + log_ratio


def per_response(x: Tensor, mask: Tensor) -> Tensor:
    """Σ_t m x for each response: (B, T) -> (B,). A response without counted tokens gives 0.

    Raises ValueError when the shapes differ.
    """
    return zero_masked(x, mask).sum(dim=-1)
