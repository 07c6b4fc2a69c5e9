"""The schedule by hand, and what is trained with which rate."""

import pytest
import torch
from tiny_models import CPU, make_config

from apa_cli.config.schema import OptimizerConfig
from apa_cli.models.roles import load_models
from apa_cli.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate


def factors(iterations, **settings):
    config = OptimizerConfig(**settings)
    return [learning_rate_factor(i, iterations, config) for i in range(iterations + 1)]


def test_constant():
    assert factors(4) == [1.0] * 5


def test_warmup_is_linear_and_never_zero():
    assert factors(6, warmup_iterations=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_linear():
    assert factors(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert factors(6, schedule="linear", warmup_iterations=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_cosine():
    root = 0.5**0.5 / 2
    assert factors(4, schedule="cosine") == pytest.approx([1.0, 0.5 + root, 0.5, 0.5 - root, 0.0])
    assert factors(4, schedule="cosine", warmup_iterations=2) == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])


def test_warmup_over_the_whole_run():
    assert factors(2, schedule="cosine", warmup_iterations=2)[:2] == [0.5, 1.0]


def test_policy_and_critic_have_rates_of_their_own(policy_dir):
    config = make_config(
        policy_dir(), optimizer__learning_rate=0.25, optimizer__value_learning_rate=0.5, policy__adapter__r=2
    )
    models = load_models(config, CPU)
    optimizer = make_optimizer(models, config.optimizer)
    assert set_learning_rate(optimizer, 0.5) == 0.125
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]
    assert set_learning_rate(optimizer, 1.0) == 0.25  # of the initial rates, not of the last ones
    policy, critic = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert policy == {id(p) for name, p in models.policy.model.named_parameters() if "lora_" in name}
    assert critic == {id(p) for p in models.value.parameters()}


def test_the_critic_takes_the_policys_rate_by_default(policy_dir):
    config = make_config(policy_dir(), optimizer__learning_rate=0.25)
    optimizer = make_optimizer(load_models(config, CPU), config.optimizer)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.95)
