"""Scores to advantages and returns, by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import RunningMoments
from apa_cli.config.schema import AdvantageConfig, ObjectiveConfig, RewardConfig
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.training.state import objective_of
from apa_cli.training.targets import length_penalties, shape_scores

ENDED = torch.tensor([True, False, True, False])


def shaped_scores(scores, ended, moments, config, **options):
    return shape_scores(scores, ended, moments, config, torch.ones(len(scores)).bool(), **options)


def estimate_targets(trajectory, scores, config, advantage, *, group_size=1, usable=None):
    usable = torch.ones(len(scores)).bool() if usable is None else usable
    return objective_of(config).targets(trajectory, scores, usable, advantage, group_size=group_size)


def objective(**settings):
    return ObjectiveConfig(**{"score_scaling": "none", "score_clip": None, **settings})


def test_missing_eos_costs_only_responses_that_were_cut():
    shaped = shaped_scores(
        torch.tensor([1.0, 1.0, -2.0, 0.0]), ENDED, RunningMoments(), objective(missing_eos_penalty=0.5)
    )
    assert shaped.tolist() == [1.0, 0.5, -2.0, -0.5]


def test_no_penalty_unless_asked():
    scores = torch.tensor([1.0, 1.0, -2.0, 0.0])
    assert torch.equal(shaped_scores(scores, ENDED, RunningMoments(), objective()), scores)


def test_running_deviation_of_the_scores_as_given():
    """First 1, 3, 5, 7 (s² = 20/3), then 1 and 1 more (mean 3, s² = 32/5); the mean is never subtracted."""
    moments = RunningMoments()
    config = objective(score_scaling="running", missing_eos_penalty=1.0)
    first = shaped_scores(torch.tensor([1.0, 3.0, 5.0, 7.0]), ENDED, moments, config)
    assert_close(first, torch.tensor([1.0, 2.0, 5.0, 6.0]) / math.sqrt(20 / 3))
    second = shaped_scores(torch.tensor([1.0, 1.0]), ENDED[:2], moments, config)
    assert_close(second, torch.tensor([1.0, 0.0]) / math.sqrt(32 / 5))


def test_scaled_scores_are_clipped():
    shaped = shaped_scores(torch.tensor([10.0, -10.0, 0.5, 0.0]), ENDED, RunningMoments(), objective(score_clip=2.0))
    assert shaped.tolist() == [2.0, -2.0, 0.5, 0.0]


def rollout():
    """Two responses of 3 and 1 tokens; NaN where nothing counts."""
    nan = math.nan
    return Trajectory(
        prompt_ids=torch.zeros(2, 1, dtype=torch.long),
        prompt_mask=torch.ones(2, 1, dtype=torch.bool),
        response_ids=torch.zeros(2, 3, dtype=torch.long),
        response_mask=torch.tensor([[True, True, True], [True, False, False]]),
        ended=torch.tensor([False, True]),
        rollout_logprobs=torch.tensor([[-1.0, -2.0, -1.0], [-1.0, nan, nan]]),
        reference_logprobs=torch.tensor([[-2.0, -1.0, -1.0], [-3.0, nan, nan]]),
        entropy=torch.tensor([[1.0, 1.0, 1.0], [1.0, nan, nan]]),
        values=torch.tensor([[0.5, 1.0, 2.0], [1.0, nan, nan]]),
    )


PLAIN = AdvantageConfig(gamma=1.0, gae_lambda=0.5, whiten=False)


def test_apa_by_hand():
    """Rewards (0, 0, 4) and (2): δ = (0.5, 1, 2) and (1); A_t = δ_t + A_{t+1} / 2."""
    targets = estimate_targets(rollout(), torch.tensor([4.0, 2.0]), objective(), PLAIN)
    advantages = torch.tensor([[0.5 + 0.5 * (1 + 0.5 * 2), 1 + 0.5 * 2, 2.0], [1.0, 0.0, 0.0]])
    assert_close(targets.advantages, advantages)
    counted = rollout().response_mask
    returns = torch.tensor([[2.0, 3.0, 4.0], [2.0, 0.0, 0.0]])
    assert_close(targets.returns[counted], returns[counted])


def test_ppo_by_hand():
    """β = 0.1: rewards (−0.1, 0.1, 4) and (2 − 0.2): δ = (0.4, 1.1, 2) and (0.8)."""
    targets = estimate_targets(rollout(), torch.tensor([4.0, 2.0]), objective(name="ppo", kl_coef=0.1), PLAIN)
    advantages = torch.tensor([[0.4 + 0.5 * 2.1, 2.1, 2.0], [0.8, 0.0, 0.0]])
    assert_close(targets.advantages, advantages)
    assert_close(targets.returns[0], advantages[0] + torch.tensor([0.5, 1.0, 2.0]))
    assert targets.returns[1, 0].item() == pytest.approx(1.8)


def test_whitening_spares_the_returns():
    plain = estimate_targets(rollout(), torch.tensor([4.0, 2.0]), objective(), PLAIN)
    config = AdvantageConfig(gamma=1.0, gae_lambda=0.5, whiten=True)
    white = estimate_targets(rollout(), torch.tensor([4.0, 2.0]), objective(), config)
    counted = rollout().response_mask
    raw = plain.advantages[counted]  # 1.5, 2, 2 and 1: mean 1.625, s² = 0.6875 / 3
    assert_close(white.advantages[counted], (raw - 1.625) / math.sqrt(0.6875 / 3))
    assert torch.equal(white.returns, plain.returns)


def test_gamma_and_lambda_are_those_of_the_configuration():
    config = AdvantageConfig(gamma=0.5, gae_lambda=0.0, whiten=False)
    targets = estimate_targets(rollout(), torch.tensor([4.0, 2.0]), objective(), config)
    assert_close(targets.advantages[0], torch.tensor([0.5 * 1 - 0.5, 0.5 * 2 - 1, 4.0 - 2]))


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


def test_group_by_hand():
    """Scores 4, 1 and 2, 2: a response's advantage stands at each of its tokens, and there are no returns."""
    targets = estimate_targets(
        four(), torch.tensor([4.0, 1.0, 2.0, 2.0]), objective(), group(whiten=False), group_size=2
    )
    assert targets.advantages.tolist() == [[3.0, 3.0], [-3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert targets.returns is None


def test_group_takes_the_kl_of_the_whole_response_into_account():
    """β = 0.5; KL 1 + 2, 2, 0 and −1: returns 4 − 1.5, 1 − 1, 2 and 2 + 0.5."""
    scores = torch.tensor([4.0, 1.0, 2.0, 2.0])
    targets = estimate_targets(four(), scores, objective(name="ppo", kl_coef=0.5), group(whiten=False), group_size=2)
    assert_close(targets.advantages, torch.tensor([[2.5, 2.5], [-2.5, 0.0], [-0.5, -0.5], [0.5, 0.5]]))


def test_group_whitening_leaves_0_at_0():
    """Seven tokens count, of squares 9, 9, 9, 0, 0, 0, 0."""
    scores = torch.tensor([4.0, 1.0, 2.0, 2.0])
    targets = estimate_targets(four(), scores, objective(), group(), group_size=2)
    expected = torch.tensor([[3.0, 3.0], [-3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]) / math.sqrt(27 / 7)
    assert_close(targets.advantages, expected)


def test_group_scaled_by_its_own_deviation():
    """4 and 1 have the variance 4.5, 2 and 1 the variance 0.5: both groups end at ± √2."""
    scores = torch.tensor([4.0, 1.0, 2.0, 1.0])
    targets = estimate_targets(four(), scores, objective(), group(whiten=False, group_scale=True), group_size=2)
    root = math.sqrt(2)
    assert_close(targets.advantages, torch.tensor([[root, root], [-root, 0.0], [root, root], [-root, -root]]))


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


def test_length_penalty_by_hand():
    """Of 3 and 1 counted tokens with a target of 1: 2 × 0.25 and nothing; it adds to the missing-EOS penalty."""
    reward = RewardConfig(length_penalty=0.25, length_target=1)
    penalties = length_penalties(rollout().response_mask, reward)
    assert penalties.tolist() == [0.5, 0.0]
    config = objective(missing_eos_penalty=1.0, score_scaling="running", score_clip=0.5)
    moments = RunningMoments()
    shaped = shaped_scores(torch.tensor([3.0, 1.0]), rollout().ended, moments, config, length_penalties=penalties)
    # Deviation of 3 and 1, as given, is √2: (3 − 1 − 0.5) / √2 is clipped, 1 / √2 too; at 2 neither is.
    assert shaped.tolist() == [0.5, 0.5]
    config = objective(missing_eos_penalty=1.0, score_scaling="running", score_clip=2.0)
    shaped = shaped_scores(
        torch.tensor([3.0, 1.0]), rollout().ended, RunningMoments(), config, length_penalties=penalties
    )
    assert_close(shaped, torch.tensor([1.5, 1.0]) / math.sqrt(2))


def test_no_length_penalty_unless_asked():
    assert length_penalties(rollout().response_mask, RewardConfig()) is None
    assert length_penalties(rollout().response_mask, RewardConfig(length_target=0)) is None
