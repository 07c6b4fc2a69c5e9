"""Every choice `objective=NAME` has the gradient of its published formula, written out here a second time."""

import math
import statistics
from types import SimpleNamespace

import pytest
import torch

from apa_cli.config.compose import compose_train
from apa_cli.training.state import objective_of

T, PROMPTS, S = 7, 3, 5
LAMBDA, BETA, CLIP = 0.6, 0.05, 0.2


def case(k, *, seed=0):
    """Log-probs of three policies and scores of k responses to each of 3 prompts, of uneven lengths; NaN is masked."""
    generator = torch.Generator().manual_seed(seed)
    B = PROMPTS * k
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    mask = torch.arange(T) < lengths[:, None]
    policy, rollout, reference = (
        torch.where(mask, -2 * torch.rand(B, T, dtype=torch.float64, generator=generator), math.nan) for _ in range(3)
    )
    rollout = policy + 0.3 * (rollout - policy)  # ratios on both sides of the clip
    responses = SimpleNamespace(response_mask=mask, rollout_logprobs=rollout, reference_logprobs=reference, values=None)
    scores = torch.randn(B, dtype=torch.float64, generator=generator)
    reference_scores = torch.randn(PROMPTS, S, dtype=torch.float64, generator=generator).repeat_interleave(k, dim=0)
    return policy.requires_grad_(), responses, scores, reference_scores


def ours(name, k, rows_at_a_time, *extra):
    """Gradient (B, T) of the objective that the preset makes, in micro-batches of so many rows."""
    config = compose_train([f"objective={name}", *extra])
    objective, (policy, responses, scores, reference_scores) = objective_of(config.objective), case(k)
    usable = torch.ones(len(scores), dtype=torch.bool)
    targets = objective.targets(
        responses, scores, usable, config.advantage, group_size=k, reference_scores=reference_scores
    )
    advantages, groups = targets.advantages.double(), torch.arange(len(scores)) // k
    if targets.whole_groups > 1:
        assert targets.whole_groups == k
        advantages = objective.group_targets(advantages, objective.log_ratios(policy, responses), groups)
    units = objective.count(responses.response_mask)
    for start in range(0, len(scores), rows_at_a_time):
        rows = slice(start, start + rows_at_a_time)
        part = SimpleNamespace(**{n: None if x is None else x[rows] for n, x in vars(responses).items()})
        loss = objective.loss(policy[rows], part, advantages[rows])
        (loss.value * objective.count(part.response_mask) / units).backward()
    return policy.grad


def published(name, k):
    """Gradient of the paper's loss, response by response."""
    policy, responses, scores, reference_scores = case(k)
    rows = []
    for i, length in enumerate(responses.response_mask.sum(dim=1).tolist()):
        group = list(range(i - i % k, i - i % k + k))
        rows.append(
            SimpleNamespace(
                policy=policy[i, :length],
                rollout=responses.rollout_logprobs[i, :length],
                reference=responses.reference_logprobs[i, :length],
                r=scores[i].item(),
                others=[scores[j].item() for j in group if j != i],
                all=[scores[j].item() for j in group],
                drawn=reference_scores[i].tolist(),
            )
        )
    losses, tokens = FORMULAS[name](rows, k), sum(len(row.policy) for row in rows)
    (sum(losses) / (tokens if name in PER_TOKEN else len(rows))).backward()
    return policy.grad


def dro(rows, k):
    """−A ℓ_t + (β/2) ℓ_t², β = λ (Tinker's dro)."""
    return [
        (
            -(row.r - statistics.fmean(row.all)) * (row.policy - row.rollout)
            + LAMBDA / 2 * (row.policy - row.rollout) ** 2
        ).sum()
        for row in rows
    ]


def pmd_mean(rows, k):
    """(r − r̄ − τ ℓ)², τ = λ (2501.12599)."""
    return [(row.r - statistics.fmean(row.all) - LAMBDA * (row.policy - row.rollout).sum()) ** 2 for row in rows]


def gvpo(rows, k):
    """(λ (ℓ_i − ℓ̄) − (r_i − r̄))², with the gradient through ℓ̄ (2504.19599)."""
    ratios = [(row.policy - row.reference).sum() for row in rows]
    means = [sum(ratios[i - i % k : i - i % k + k]) / k for i in range(len(rows))]
    return [
        (LAMBDA * (ratio - mean) - (row.r - statistics.fmean(row.all))) ** 2
        for ratio, mean, row in zip(ratios, means, rows, strict=True)
    ]


def rebel(rows, k):
    """Over all pairs of a prompt: (λ (ℓ_i − ℓ_j) − (r_i − r_j))² (2404.16767)."""
    ratios = [(row.policy - row.reference).sum() for row in rows]
    pairs = [(i, j) for i in range(len(rows)) for j in range(i - i % k, i - i % k + k) if i != j]
    return [(LAMBDA * (ratios[i] - ratios[j]) - (rows[i].r - rows[j].r)) ** 2 for i, j in pairs]


def tba(rows, k):
    """(log Z + ℓ − r/λ)², log Z the group's mean of r/λ − ℓ, without gradient (2503.18929)."""
    found = []
    for i, row in enumerate(rows):
        group = rows[i - i % k : i - i % k + k]
        log_z = statistics.fmean(own.r / LAMBDA - (own.policy - own.reference).sum().item() for own in group)
        found.append((log_z + (row.policy - row.reference).sum() - row.r / LAMBDA) ** 2)
    return found


def a_star_po(rows, k):
    """(β ℓ − (r − V*))², V* = β log mean e^{r/β}, β = λ (2505.20686)."""
    values = [LAMBDA * math.log(statistics.fmean(math.exp(r / LAMBDA) for r in row.drawn)) for row in rows]
    return [
        (LAMBDA * (row.policy - row.reference).sum() - (row.r - value)) ** 2
        for row, value in zip(rows, values, strict=True)
    ]


def qrpo(rows, k):
    """(q − β log Z − β ℓ)², Z = β (e^{1/β} − 1) (2507.08068)."""
    log_z = math.log(LAMBDA * (math.exp(1 / LAMBDA) - 1))
    return [
        (
            statistics.fmean(float(r <= row.r) for r in row.drawn)
            - LAMBDA * log_z
            - LAMBDA * (row.policy - row.reference).sum()
        )
        ** 2
        for row in rows
    ]


def apa(rows, k):
    """(ℓ_t − A/λ)², A leave-one-out and scaled to unit deviation over tokens (2306.02231)."""
    advantages = [row.r - statistics.fmean(row.others) for row in rows]
    square = sum(a**2 * len(row.policy) for a, row in zip(advantages, rows, strict=True))
    deviation = math.sqrt(square / sum(len(row.policy) for row in rows) + 1e-8)
    return [
        ((row.policy - row.reference - a / deviation / LAMBDA) ** 2).sum()
        for a, row in zip(advantages, rows, strict=True)
    ]


def surrogate(ratio, advantage):
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))


def grpo(rows, k):
    """Ratio and clip, group mean and deviation, k3 in the loss, a mean over each response's tokens (2402.03300)."""
    found = []
    for row in rows:
        advantage = (row.r - statistics.fmean(row.all)) / (statistics.stdev(row.all) + 1e-4)
        d = row.policy - row.reference
        found.append((surrogate((row.policy - row.rollout).exp(), advantage) + BETA * ((-d).exp() - 1 + d)).mean())
    return found


def dr_grpo(rows, k):
    """Neither deviation nor length: a constant divides every response's sum (2503.20783)."""
    return [surrogate((row.policy - row.rollout).exp(), row.r - statistics.fmean(row.all)).sum() / 32 for row in rows]


def rloo(rows, k):
    """The response is one action: its ratio, its reward less β times its log-ratio, the others' mean (2402.14740)."""
    returns = [row.r - BETA * (row.rollout - row.reference).sum().item() for row in rows]
    found = []
    for i, row in enumerate(rows):
        others = [returns[j] for j in range(i - i % k, i - i % k + k) if j != i]
        found.append(surrogate((row.policy - row.rollout).sum().exp(), returns[i] - statistics.fmean(others)))
    return found


FORMULAS = {f.__name__: f for f in (dro, pmd_mean, gvpo, rebel, tba, a_star_po, qrpo, apa, grpo, dr_grpo, rloo)}
PER_TOKEN = {"dro", "apa"}
SCALES = {  # of our gradient, over the published one; λ is a unit of the loss there
    "dro": 2 / LAMBDA,
    "rebel": None,  # sums over pairs: 1/λ² over twice the group's size
    **dict.fromkeys(("pmd_mean", "gvpo", "a_star_po", "qrpo"), LAMBDA**-2),
}
KNOBS = {name: [f"objective.kl_coef={BETA}"] for name in ("grpo", "rloo")} | {"dr_grpo": []}
GROUP = ["advantage=group", "value=none", "rollout.responses_per_prompt=8"]


@pytest.mark.parametrize(("k", "rows_at_a_time"), [(2, 1), (3, 5), (8, 100)])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_gradient_is_the_published_one(name, k, rows_at_a_time):
    extra = KNOBS.get(name, [f"objective.kl_lambda={LAMBDA}"]) + (GROUP if name == "apa" else [])
    found, expected = ours(name, k, rows_at_a_time, *extra), published(name, k)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert cosine > 1 - 1e-10
    scale = 1 / (2 * k * LAMBDA**2) if name == "rebel" else SCALES.get(name, 1.0)
    assert (found.norm() / expected.norm()).item() == pytest.approx(scale, rel=1e-6)
