"""The metrics of a rollout against sums done by hand, with NaN wherever nothing counts."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import CPU, make_config, uneven_batch

from apa_cli.models.roles import load_models
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.statistics import distinct_n, rollout_statistics
from apa_cli.rollouts.trajectory import Trajectory

NAN = math.nan


def small():
    return Trajectory(
        prompt_ids=torch.zeros(3, 1, dtype=torch.long),
        prompt_mask=torch.ones(3, 1, dtype=torch.bool),
        response_ids=torch.tensor([[5, 6, 7], [5, 9, 9], [5, 6, 9]]),
        response_mask=torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool(),
        ended=torch.tensor([False, True, True]),
        rollout_logprobs=torch.tensor([[-1.0, -2.0, -0.5], [-1.5, NAN, 7.0], [-1.0, -1.0, NAN]]),
        reference_logprobs=torch.tensor([[-1.5, -1.0, -0.5], [-3.5, 3.0, NAN], [-1.0, -0.5, NAN]]),
        entropy=torch.tensor([[2.0, 1.0, 3.0], [0.5, NAN, NAN], [1.5, 4.0, 99.0]]),
    )


def test_a_rollout_worked_by_hand():
    """d = log π − log π_ref is (0.5, −1, 0), (2) and (0, −0.5)."""
    stats = rollout_statistics(small())
    assert small().kl.tolist() == [-0.5, 2.0, -0.5]
    assert stats["kl/to_init"] == pytest.approx(1 / 3)
    assert stats["kl/to_init_per_token"] == pytest.approx((0.5 - 1 + 0 + 2 + 0 - 0.5) / 6)
    k3 = [math.exp(-d) - 1 + d for d in (0.5, -1, 0, 2, 0, -0.5)]
    assert stats["kl/to_init_k3"] == pytest.approx(sum(k3) / 3, rel=1e-6)
    assert stats["policy/entropy"] == pytest.approx((2 + 1 + 3 + 0.5 + 1.5 + 4) / 6)
    assert stats["policy/response_length"] == 2.0
    assert stats["policy/eos_rate"] == pytest.approx(2 / 3)
    assert stats["policy/unique_fraction"] == 1.0
    assert stats["policy/distinct_2"] == pytest.approx(2 / 3)  # 56, 67 and 56 again


def test_distinct_and_unique():
    assert distinct_n([[1, 2, 1, 2], [1, 2]], 2) == 0.5  # 12, 21, 12, 12
    assert distinct_n([[1], []], 2) == 0.0
    zeros, counted = torch.zeros(3, 3), torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0]]).bool()
    changed = replace(
        small(), response_mask=counted, rollout_logprobs=zeros, reference_logprobs=zeros, entropy=zeros
    )  # [5], [5] and [5, 6]
    assert rollout_statistics(changed)["policy/unique_fraction"] == pytest.approx(2 / 3)


def test_selecting_rows_trims_and_keeps_what_counts(policy_dir):
    config = make_config(policy_dir(eos_logit=4.0))
    models = load_models(config, CPU)
    torch.manual_seed(3)
    rollout = sample(models.policy, uneven_batch(models.policy, 16), config.generation)
    lengths = rollout.response_mask.sum(dim=1)
    rows = torch.tensor([int(lengths.argmin()), 3, 0])
    part = rollout.select(rows)
    assert part.response_token_ids() == [rollout.response_token_ids()[r] for r in rows.tolist()]
    assert part.prompt_ids.shape[1] == rollout.prompt_mask[rows].sum(dim=1).max()
    assert part.response_ids.shape[1] == lengths[rows].max()
    for i, r in enumerate(rows.tolist()):
        assert torch.equal(
            part.rollout_logprobs[i][part.response_mask[i]], rollout.rollout_logprobs[r][rollout.response_mask[r]]
        )
    assert torch.equal(part.ended, rollout.ended[rows])
