import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import exact_kl, kl_k1, kl_k3, per_response


def exactly(actual, expected):
    assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-9)


def test_estimates_by_hand():
    # d = log 2 and −log 4: k1 = d; k3 = 1/2 − 1 + log 2 and 4 − 1 − log 4
    policy = torch.tensor([[0.5, 0.1, math.nan]], dtype=torch.float64).log()
    reference = torch.tensor([[0.25, 0.4, math.inf]], dtype=torch.float64).log()
    mask = torch.tensor([[1, 1, 0]])
    exactly(kl_k1(policy, reference, mask), [[math.log(2), -math.log(4), 0.0]])
    exactly(kl_k3(policy, reference, mask), [[math.log(2) - 0.5, 3 - math.log(4), 0.0]])


def test_expectations_are_the_exact_kl():
    # Every token of a small vocabulary stands in its own response, weighted by the policy's probability of it.
    policy_logits = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7], dtype=torch.float64)
    reference_logits = torch.tensor([1.0, 0.5, -0.5, 0.2, 0.0], dtype=torch.float64)
    policy, reference = policy_logits.log_softmax(0)[:, None], reference_logits.log_softmax(0)[:, None]
    mask = torch.ones(5, 1)
    p = [math.exp(x) for x in policy_logits.tolist()]
    q = [math.exp(x) for x in reference_logits.tolist()]
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    weights = torch.tensor(p, dtype=torch.float64)[:, None]
    exactly((weights * kl_k1(policy, reference, mask)).sum(), kl)
    exactly((weights * kl_k3(policy, reference, mask)).sum(), kl)
    exactly(exact_kl(policy_logits[None, None], reference_logits[None, None]), [[kl]])
    # the other sign in the exponent estimates χ² − KL, another number
    chi_squared = sum(a * a / b for a, b in zip(p, q, strict=True)) - 1
    assert abs(chi_squared - kl - kl) > 0.1
    exactly((weights * kl_k3(reference, policy, mask)).sum(), chi_squared - kl)


def test_k3_is_never_negative_and_keeps_small_values():
    d = torch.tensor([[-3.0, -1e-4, 0.0, 1e-4, 3.0]])
    k3 = kl_k3(d, torch.zeros_like(d), torch.ones_like(d))
    assert (k3 >= 0).all()
    assert k3[0, 2] == 0.0
    assert_close(k3[0, [1, 3]], torch.full((2,), 5e-9), rtol=2e-3, atol=0)  # d²/2; d has a relative error of 1e-7


def test_sums_per_response():
    x = torch.tensor([[1.0, 2.0, math.nan], [math.inf, 1.0, 4.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])
    exactly(per_response(x, mask), [3.0, 5.0, 0.0])


def test_shapes_are_checked():
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    for estimate in (kl_k1, kl_k3):
        with pytest.raises(ValueError, match="reference_logprobs"):
            estimate(a, b, a)
        with pytest.raises(ValueError, match="mask"):
            estimate(a, a, b)
    with pytest.raises(ValueError, match="mask"):
        per_response(a, b)
