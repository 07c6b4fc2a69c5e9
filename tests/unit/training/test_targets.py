"""Rows of a group that cannot be used. What targets come to otherwise is held against tests/independent."""

import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.config.schema import AdvantageConfig, ObjectiveConfig
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.training.state import objective_of


def estimate_targets(trajectory, scores, config, advantage, *, group_size=1, usable=None):
    usable = torch.ones(len(scores)).bool() if usable is None else usable
    return objective_of(config).targets(trajectory, scores, usable, advantage, group_size=group_size)


def objective(**settings):
    return ObjectiveConfig(**{"score_scaling": "none", "score_clip": None, **settings})


def four():
    """Two prompts with two responses each, of 2 tokens; in the second response the second token does not count."""
    mask = torch.ones(4, 2, dtype=torch.bool)
    mask[1, 1] = False
    return Trajectory(
        prompt_ids=torch.zeros(4, 1, dtype=torch.long),
        prompt_mask=torch.ones(4, 1, dtype=torch.bool),
        response_ids=torch.zeros(4, 2, dtype=torch.long),
        response_mask=mask,
        ended=torch.ones(4, dtype=torch.bool),
        rollout_logprobs=torch.tensor([[-1.0, -2.0], [-1.0, math.nan], [-1.0, -1.0], [-2.0, -2.0]]),
        reference_logprobs=torch.tensor([[-2.0, -4.0], [-3.0, math.nan], [-1.0, -1.0], [-1.0, -2.0]]),
        entropy=torch.ones(4, 2),
    )


def group(**settings):
    return AdvantageConfig(name="group", **settings)


@pytest.mark.parametrize("name", ["apa", "ppo"])
def test_a_bad_row_leaves_its_group_alone(name):
    """With one of three rows unusable, the other two are compared as if there were no third."""
    whole = four().select(torch.tensor([0, 1, 2, 3, 0, 1]))
    whole.rollout_logprobs[1, 0] = math.nan
    scores = torch.tensor([4.0, math.nan, 2.0, 2.0, 4.0, 1.0])
    usable = torch.tensor([True, False, True, True, True, True])
    plain = group(whiten=False)
    targets = estimate_targets(whole, scores, objective(name=name, kl_coef=0.5), plain, group_size=3, usable=usable)
    pair = estimate_targets(
        four().select(torch.tensor([0, 2])), scores[[0, 2]], objective(name=name, kl_coef=0.5), plain, group_size=2
    )
    assert_close(targets.advantages[[0, 2]], pair.advantages)
    assert targets.advantages[1].tolist() == [0.0, 0.0]
    assert bool(targets.advantages.isfinite().all())
    assert targets.usable.tolist() == usable.tolist()


def test_a_row_left_alone_in_its_group_is_not_trained_on():
    """It has nothing to be compared with, and an A of 0 would also make the others' root mean square smaller."""
    usable = torch.tensor([True, False, True, True])
    scores = torch.tensor([4.0, math.nan, 2.0, 1.0])
    shaped = torch.where(usable, scores, 0.0)
    targets = estimate_targets(four(), shaped, objective(), group(), group_size=2, usable=usable)
    assert targets.usable.tolist() == [False, False, True, True]
    assert_close(targets.advantages[2:], torch.ones(2, 2) * torch.tensor([[1.0], [-1.0]]))
    assert targets.advantages[:2].abs().sum() == 0
