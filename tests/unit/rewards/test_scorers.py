"""Several rewards: the weighted sum by hand, a missing score, and one model for two names."""

import math

import pytest
from tiny_models import CPU, make_config

from apa_cli.config.schema import ComponentConfig, RewardConfig
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.roles import load_models
from apa_cli.rewards.function import RewardFunction
from apa_cli.rewards.record import FinishedResponses
from apa_cli.rewards.scorers import WeightedRewards, complaint, load_reward, load_scorers, score
from apa_cli.training.memory_plan import make_plan


def responses(count=3):
    return FinishedResponses(
        prompts=["p"] * count, responses=["r"] * count, messages=None, columns={}, token_ids=[[1]] * count
    )


def several(**parts):
    """WeightedRewards of name=(weight, scores)."""
    scorers = {
        name: RewardFunction(
            lambda prompts, responses, given=given: given, name, key=f"reward.components.{name}.function"
        )
        for name, (_, given) in parts.items()
    }
    return WeightedRewards(scorers, {name: weight for name, (weight, _) in parts.items()})


def test_the_sum_by_hand():
    scored = score(several(a=(2.0, [1.0, 0.0, -1.0]), b=(-0.5, [4.0, 2.0, 0.0])), responses())
    assert scored.scores == [0.0, -1.0, -2.0]
    assert scored.parts == {"a": [1.0, 0.0, -1.0], "b": [4.0, 2.0, 0.0]}
    assert scored.parts_of(1) == {"a": 0.0, "b": 2.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_response_without_one_of_the_scores_has_none(bad):
    rewards = several(a=(1.0, [1.0, 1.0, 1.0]), b=(1.0, [0.0, bad, 0.0]))
    scored = score(rewards, responses())
    assert scored.scores[::2] == [1.0, 1.0]
    assert math.isnan(scored.scores[1])
    assert str(complaint(rewards, scored, 1)) == (
        f"reward.components.b.function: b returned {bad} for row 1; return finite numbers"
    )


def test_a_sum_that_overflows_is_the_weights():
    rewards = several(a=(1e30, [1e30]), b=(1.0, [0.0]))
    scored = score(rewards, responses(1))
    assert str(complaint(rewards, scored, 0)) == "reward.components: response 0 comes to inf; lower the weights"


def test_a_model_named_twice_is_loaded_once(policy_dir, reward_dir):
    """Also by the evaluator; each name keeps its own keys, and memory within limits reaches all of them."""
    config = make_config(policy_dir())
    config.reward = RewardConfig(
        components={
            "a": ComponentConfig(path=str(reward_dir)),
            "b": ComponentConfig(path=str(reward_dir), format="pair", weight=-1.0),
            "c": ComponentConfig(kind="function", function="tiny_models:vowels"),
        }
    )
    config.evaluation.reward.kind, config.evaluation.reward.path = "model", str(reward_dir)
    scorers = load_scorers(config, load_models(config, CPU).policy, CPU)
    a, b = scorers.reward.scorers["a"], scorers.reward.scorers["b"]
    assert a.model is b.model is scorers.evaluator.model
    assert (a.config.format, b.config.format) == ("auto", "pair")
    scorers.limit_tokens(7)
    assert a.microbatch_tokens == b.microbatch_tokens == scorers.evaluator.microbatch_tokens == 7

    roles = make_plan(config, CPU).roles
    held = sum(p.numel() for p in a.model.parameters())
    assert roles["reward.a"].parameters == held
    assert roles["reward.b"].weights == roles["evaluator"].weights == "those of reward.a"
    assert roles["reward.b"].bytes == roles["evaluator"].bytes == roles["reward.c"].bytes == 0


def test_messages_name_the_component(policy_dir):
    config = RewardConfig(components={"a": ComponentConfig(path="no/such/model")})
    policy = load_policy(make_config(policy_dir()).policy, CPU)
    with pytest.raises(Exception, match=r"^reward\.components\.a\.path: "):
        load_reward(config, policy, CPU, microbatch_tokens=100)
