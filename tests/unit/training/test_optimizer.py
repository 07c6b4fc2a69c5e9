"""The schedule by hand, and what is trained with which rate."""

import sys

import pytest
import torch
from refused import refusal
from tiny_models import CPU, eight_bit, make_config

from apa_cli.config.schema import OptimizerConfig
from apa_cli.models.roles import load_models
from apa_cli.training.optimizer import (
    check_optimizer,
    learning_rate_factor,
    lost_share,
    make_optimizer,
    schedule_learning_rate,
)

ROOT = 0.5**0.5 / 2


@pytest.mark.parametrize(
    ("iterations", "settings", "factors"),
    [
        (4, {}, [1.0] * 5),
        (6, {"warmup_iterations": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
        (4, {"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (6, {"schedule": "linear", "warmup_iterations": 2}, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        (4, {"schedule": "cosine"}, [1.0, 0.5 + ROOT, 0.5, 0.5 - ROOT, 0.0]),
        (4, {"schedule": "cosine", "warmup_iterations": 2}, [0.5, 1.0, 1.0, 0.5, 0.0]),
        (2, {"schedule": "cosine", "warmup_iterations": 2}, [0.5, 1.0]),
    ],
)
def test_the_schedule_by_hand(iterations, settings, factors):
    config = OptimizerConfig(**settings)
    assert [learning_rate_factor(i, iterations, config) for i in range(len(factors))] == pytest.approx(factors)


def test_policy_and_critic_have_rates_of_their_own(policy_dir):
    config = make_config(
        policy_dir(),
        optimizer__learning_rate=0.25,
        optimizer__value_learning_rate=0.5,
        optimizer__warmup_iterations=2,
        policy__adapter__r=2,
    )
    models = load_models(config, CPU)
    optimizer = make_optimizer(models, config.optimizer)
    assert schedule_learning_rate(optimizer, 0, config) == 0.125
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]
    assert schedule_learning_rate(optimizer, 1, config) == 0.25  # of the initial rates, not of the last ones
    policy, critic = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert policy == {id(p) for name, p in models.policy.model.named_parameters() if "lora_" in name}
    assert critic == {id(p) for p in models.value.parameters()}


def test_the_critic_takes_the_policys_rate_by_default(policy_dir):
    config = make_config(policy_dir(), optimizer__learning_rate=0.25)
    optimizer = make_optimizer(load_models(config, CPU), config.optimizer)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["fused"]  # no temporary as large as a weight
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def test_missing_bitsandbytes_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_optimizer(OptimizerConfig())
    assert "apa-cli[8bit]" in refusal(check_optimizer, OptimizerConfig(name="adamw_8bit"))


@eight_bit
def test_eight_bits_take_adamws_first_step(policy_dir):
    """AdamW's first step is lr · sign(g), and decay shrinks the weight by lr · λ apart from it, in 8 bits too."""
    rate, decay = 0.0625, 0.5
    config = make_config(
        policy_dir(), optimizer__name="adamw_8bit", optimizer__learning_rate=rate, optimizer__weight_decay=decay
    )
    models = load_models(config, CPU)
    optimizer = make_optimizer(models, config.optimizer)
    weights = models.policy.trainable_parameters()
    before = [w.detach().clone() for w in weights]
    for w in weights:
        w.grad = torch.randn_like(w)
    optimizer.step()
    for w, start in zip(weights, before, strict=True):
        torch.testing.assert_close(w.detach(), start * (1 - rate * decay) - rate * w.grad.sign(), atol=2e-4, rtol=1e-4)
    large = [w for w in weights if w.numel() >= 4096]
    assert large
    assert {optimizer.state[w]["state1"].dtype for w in large} == {torch.uint8}


def test_steps_below_bf16s_resolution_are_counted():
    """Between 1 and 2 bf16 has steps of 2⁻⁷, so half of that changes nothing; below 1 they are half as wide."""
    weights = torch.nn.Parameter(torch.tensor([1.5, -1.5, 0.75, 0.0], dtype=torch.bfloat16))
    wide = torch.nn.Parameter(torch.ones(100))
    assert lost_share(torch.optim.SGD([{"params": [weights, wide], "initial_lr": 0.003}], lr=1)) == 0.5
    assert lost_share(torch.optim.SGD([{"params": [weights, wide], "initial_lr": 0.001}], lr=1)) == 0.75
    assert lost_share(torch.optim.SGD([{"params": [weights, wide], "initial_lr": 0.005}], lr=1)) == 0.0
    assert lost_share(torch.optim.SGD([{"params": [wide], "initial_lr": 1e-12}], lr=1)) == 0.0
