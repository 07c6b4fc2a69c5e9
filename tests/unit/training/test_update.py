"""The update: any micro-batching gives one gradient, masked positions give none, every pass has its own order."""

import functools
import math
import operator
from dataclasses import fields, replace

import pytest
import torch
from torch.testing import assert_close
from update_setting import setting

from apa_cli.algorithms import MeanAccumulator
from apa_cli.training import update as update_module
from apa_cli.training.optimizer import make_optimizer
from apa_cli.training.targets import Targets
from apa_cli.training.update import accumulate_gradients, update


class Means(dict):
    def __missing__(self, name):
        self[name] = MeanAccumulator()
        return self[name]


def gradients(config, models, rollout, targets, rows=None, tokens=None):
    if tokens is not None:
        config.training.microbatch_tokens = tokens
    parameters = [*models.policy.model.named_parameters(), *models.value.named_parameters()]
    for _, p in parameters:
        p.grad = None
    means = Means()
    rows = torch.arange(len(rollout.response_ids)) if rows is None else rows
    with models.policy.training():
        models.value.train()
        accumulate_gradients(models, rollout, targets, rows, config, means)
        models.value.eval()
    found = {name: p.grad for name, p in parameters if p.grad is not None}
    for _, p in parameters:
        p.grad = None
    return found, {name: mean.mean() for name, mean in means.items()}


KINDS = {
    "apa-separate": {"objective__name": "apa"},
    "apa-shared-lora": {"objective__name": "apa", "value__kind": "shared", "policy__adapter__r": 2},
    "apa-bounded-huber": {"objective__target_bound": 2.0, "objective__huber_delta": 1.0},
    "awr-shared": {"objective__name": "awr", "value__kind": "shared"},
    "awr-checkpointing": {"objective__name": "awr", "policy__gradient_checkpointing": True},
    "ppo-separate-lora": {"objective__name": "ppo", "policy__adapter__r": 2},
    "ppo-shared-checkpointing": {
        "objective__name": "ppo",
        "value__kind": "shared",
        "policy__gradient_checkpointing": True,
    },
    "apa-adapter": {"value__kind": "adapter", "policy__adapter__r": 2},
    "ppo-adapter-checkpointing": {
        "objective__name": "ppo",
        "value__kind": "adapter",
        "policy__adapter__r": 2,
        "policy__gradient_checkpointing": True,
    },
    "apa-lora-checkpointing": {"policy__adapter__r": 2, "policy__gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_gradient_of_one_batch(policy_dir, kind):
    config, models, rollout, targets = setting(policy_dir(eos_logit=4.0), **KINDS[kind])
    lengths = rollout.response_mask.sum(dim=1)
    assert lengths.min() == 1
    assert lengths.max() == 6
    whole, whole_stats = gradients(config, models, rollout, targets, tokens=10**6)
    assert all(g.abs().sum() > 0 for name, g in whole.items() if "lora_A" in name or "head" in name or "dense" in name)
    for tokens in (1, 30):
        parts, stats = gradients(config, models, rollout, targets, tokens=tokens)
        assert parts.keys() == whole.keys()
        for name, gradient in parts.items():
            assert_close(gradient, whole[name], atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
        assert stats.keys() == whole_stats.keys()
        for name, number in stats.items():
            assert number == pytest.approx(whole_stats[name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize(
    ("critic", "adapter"), [("separate", 0), ("separate", 2), ("shared", 0), ("shared", 2), ("adapter", 2)]
)
def test_checkpointing_changes_no_gradient(policy_dir, critic, adapter):
    found = []
    for checkpointing in (False, True):
        config, models, rollout, targets = setting(
            policy_dir(), value__kind=critic, policy__adapter__r=adapter, policy__gradient_checkpointing=checkpointing
        )
        assert (
            models.policy.model.get_base_model().is_gradient_checkpointing is checkpointing
            if adapter
            else (models.policy.model.is_gradient_checkpointing is checkpointing)
        )
        found.append(gradients(config, models, rollout, targets)[0])
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_apa_gradient_is_that_of_the_equation(policy_dir):
    """Σ m (log π − log π_ref − A/λ)² / Σ m over the whole minibatch, written with plain torch on whole rows."""
    config, models, rollout, targets = setting(policy_dir(eos_logit=4.0), objective__kl_lambda=0.5)
    got, stats = gradients(config, models, rollout, targets, tokens=25)
    model, total, value_total, count = models.policy.model, 0.0, 0.0, 0
    for row, length in enumerate(rollout.response_mask.sum(dim=1).tolist()):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]]
        ids = rollout.response_ids[row, :length]
        sequence = torch.cat([prompt, ids])[None]
        span = slice(len(prompt) - 1, -1)
        logprobs = model(sequence).logits[0, span].log_softmax(-1)[torch.arange(length), ids]
        target = rollout.reference_logprobs[row, :length] + targets.advantages[row, :length] / 0.5
        total = total + ((logprobs - target) ** 2).sum()
        hidden = models.value.trunk(sequence).last_hidden_state[0, span]
        values = hidden @ models.value.head.linear.weight[0] + models.value.head.linear.bias
        value_total = value_total + 0.5 * ((values - targets.returns[row, :length]) ** 2).sum()
        count += length
    parameters = dict([*model.named_parameters(), *models.value.named_parameters()])
    for p in parameters.values():
        p.grad = None
    ((total + value_total) / count).backward()
    for name, gradient in got.items():
        assert_close(gradient, parameters[name].grad, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert stats["objective/policy_loss"] == pytest.approx(total.item() / count, rel=1e-5)
    assert stats["objective/value_loss"] == pytest.approx(value_total.item() / count, rel=1e-5)
    assert stats["objective/target_residual"] == pytest.approx(total.item() / count, rel=1e-5)  # squared until the end


@pytest.mark.parametrize("objective", ["apa", "awr", "ppo"])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_nan_where_nothing_counts_changes_nothing(policy_dir, objective, critic):
    config, models, rollout, targets = setting(policy_dir(eos_logit=4.0), objective__name=objective, value__kind=critic)
    clean, stats = gradients(config, models, rollout, targets)
    off = ~rollout.response_mask
    assert off.any()
    spoiled = {
        field.name: getattr(rollout, field.name).masked_fill(off, float("nan"))
        for field in fields(rollout)
        if getattr(rollout, field.name).dtype == torch.float32
    }
    assert set(spoiled) == {"rollout_logprobs", "entropy", "reference_logprobs", "values"}
    ids = rollout.response_ids.masked_fill(off, 299)
    dirty_rollout = replace(rollout, **spoiled, response_ids=ids)
    nan_targets = Targets(
        advantages=targets.advantages.masked_fill(off, float("nan")),
        returns=targets.returns.masked_fill(off, float("inf")),
    )
    dirty, dirty_stats = gradients(config, models, dirty_rollout, nan_targets)
    for name, gradient in clean.items():
        assert_close(dirty[name], gradient, atol=1e-7, rtol=1e-6)
    assert dirty_stats == pytest.approx(stats, rel=1e-6)


def test_every_pass_has_an_order_of_its_own_and_takes_each_row_once(policy_dir, monkeypatch):
    config, models, rollout, targets = setting(policy_dir(), training__epochs_per_rollout=3, training__minibatch_size=5)
    seen = []

    def watch(models, rollout, targets, rows, *rest, **options):
        seen.append(rows.tolist())
        return accumulate_gradients(models, rollout, targets, rows, *rest, **options)

    monkeypatch.setattr(update_module, "accumulate_gradients", watch)
    update(models, make_optimizer(models, config.optimizer), rollout, targets, config)
    assert [len(rows) for rows in seen] == [5, 5, 2] * 3
    passes = [functools.reduce(operator.iadd, seen[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(12)) for order in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_policy_and_critic_are_clipped_apart(policy_dir, critic):
    config, models, rollout, targets = setting(
        policy_dir(),
        value__kind=critic,
        optimizer__max_grad_norm=0.01,
        training__minibatch_size=12,
        training__epochs_per_rollout=1,
    )
    before, _ = gradients(config, models, rollout, targets)
    critic_names = {name for name, _ in models.value.named_parameters()}
    assert critic_names

    def norm(found, names):
        return sum(g.square().sum() for name, g in found.items() if name in names).sqrt().item()

    policy_names = set(before) - critic_names
    optimizer = make_optimizer(models, config.optimizer)
    clipped = {}

    def step():
        named = [*models.policy.model.named_parameters(), *models.value.named_parameters()]
        clipped.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    optimizer.step = step
    stats = update(models, optimizer, rollout, targets, config)
    for names, metric in ((policy_names, "optim/grad_norm"), (critic_names, "optim/value_grad_norm")):
        assert norm(before, names) > 0.02
        assert norm(clipped, names) == pytest.approx(0.01, rel=1e-3)
        assert stats[metric] == pytest.approx(norm(before, names), rel=1e-3)


def test_the_critic_of_its_own_leaves_the_policy_alone(policy_dir):
    """Value gradients reach the policy through a shared trunk only."""
    for critic in ("separate", "shared"):
        config, models, rollout, targets = setting(policy_dir(), value__kind=critic)
        without, _ = gradients(config, models, rollout, targets)
        config.objective.value_coef = 50.0
        with_value, _ = gradients(config, models, rollout, targets)
        name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
        same = torch.allclose(without[name], with_value[name], atol=1e-6)
        assert same == (critic == "separate")


def test_ppo_clips_values_and_the_others_do_not(policy_dir):
    """With rollout values far from today's, the clipped loss has the larger term ½ max((V − R)², (V_clip − R)²)."""
    for objective in ("apa", "ppo"):
        config, models, rollout, targets = setting(policy_dir(), objective__name=objective)
        _plain, stats = gradients(config, models, rollout, targets)
        moved = replace(rollout, values=rollout.values + 100.0)
        _shifted, shifted_stats = gradients(config, models, moved, targets)
        changed = abs(stats["objective/value_loss"] - shifted_stats["objective/value_loss"]) > 1.0
        assert changed == (objective == "ppo")


def test_residual_is_a_root_mean_square(policy_dir):
    config, models, rollout, targets = setting(
        policy_dir(), training__epochs_per_rollout=1, training__minibatch_size=12
    )
    _, raw = gradients(config, models, rollout, targets)
    stats = update(models, make_optimizer(models, config.optimizer), rollout, targets, config)
    assert stats["objective/target_residual"] == pytest.approx(raw["objective/policy_loss"] ** 0.5, rel=1e-5)


def test_bound_and_huber_reach_the_loss_and_the_share_of_bounded_targets_is_logged(policy_dir):
    config, models, rollout, targets = setting(
        policy_dir(eos_logit=4.0), objective__kl_lambda=0.5, objective__target_bound=1.0, objective__huber_delta=0.5
    )
    _, stats = gradients(config, models, rollout, targets, tokens=25)
    with torch.no_grad():
        logprobs, _ = models.policy.logprobs(*rollout.batch, temperature=1.0)
    counted = rollout.response_mask
    asked = targets.advantages[counted] / 0.5
    distance = logprobs[counted] - rollout.reference_logprobs[counted] - asked.clamp(-1.0, 1.0)
    expected = 2 * torch.nn.functional.huber_loss(distance, torch.zeros_like(distance), delta=0.5)
    assert stats["objective/policy_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert stats["objective/target_residual"] == pytest.approx(distance.square().mean().item(), rel=1e-5)
    assert stats["objective/bounded_fraction"] == pytest.approx((asked.abs() > 1).float().mean().item(), rel=1e-6)
    assert 0 < stats["objective/bounded_fraction"] < 1


def test_apa_moves_towards_its_target(policy_dir):
    """Enough steps on one rollout take log π to log π_ref + A/λ at the sampled tokens."""
    config, models, rollout, targets = setting(
        policy_dir(),
        rows=4,
        objective__kl_lambda=2.0,
        training__epochs_per_rollout=150,
        training__minibatch_size=4,
        optimizer__learning_rate=0.02,
    )
    small = Targets(advantages=targets.advantages.clamp(-1, 1), returns=targets.returns)
    _, first = gradients(config, models, rollout, small)
    update(models, make_optimizer(models, config.optimizer), rollout, small, config)
    _, last = gradients(config, models, rollout, small)
    assert last["objective/policy_loss"] < 0.1 * first["objective/policy_loss"]


@pytest.mark.parametrize("objective", ["apa", "awr", "ppo"])
def test_without_a_critic_the_policy_learns_the_same(policy_dir, objective):
    """The policy's step does not know of a separate critic, so leaving it out changes nothing but its metrics."""
    changes = {"objective__name": objective, "training__epochs_per_rollout": 1}
    config, models, rollout, targets = setting(policy_dir(), **changes)
    none = {"value__kind": "none", "advantage__name": "group", "rollout__responses_per_prompt": 4}
    config_none, models_none, _, _ = setting(policy_dir(), **changes, **none)
    models_none.policy.model.load_state_dict(models.policy.model.state_dict())
    seeded = []
    for c, m, r, t in (
        (config, models, rollout, targets),
        (config_none, models_none, replace(rollout, values=None), Targets(advantages=targets.advantages)),
    ):
        torch.manual_seed(3)
        seeded.append(update(m, make_optimizer(m, c.optimizer), r, t, c))
    with_critic, without = seeded
    of_critic = {"objective/value_loss", "optim/value_grad_norm"}
    assert with_critic.keys() - without.keys() == of_critic
    assert without == {name: value for name, value in with_critic.items() if name not in of_critic}
    ours, theirs = models.policy.model.state_dict(), models_none.policy.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert models_none.value is None


@pytest.mark.parametrize("objective", ["apa", "ppo"])
@pytest.mark.parametrize("critic", ["separate", "shared", "adapter"])
def test_while_the_critic_warms_up_the_policy_stands_still(policy_dir, critic, objective):
    changes = {"policy__adapter__r": 2} if critic == "adapter" else {}
    config, models, rollout, targets = setting(
        policy_dir(), value__kind=critic, objective__name=objective, optimizer__weight_decay=0.1, **changes
    )
    policy = {id(p) for p in models.policy.trainable_parameters()}
    named = [*models.policy.model.named_parameters(), *models.value.named_parameters(prefix="critic")]
    before = {name: p.detach().clone() for name, p in named}
    optimizer = make_optimizer(models, config.optimizer)
    stats = update(models, optimizer, rollout, targets, config, train_policy=False)
    moved = {id(p) for name, p in named if not torch.equal(p, before[name])}
    assert moved
    assert not moved & policy
    assert not policy & {
        id(p) for p in optimizer.state
    }  # no moments, no decay: the first step of the policy is its first
    assert math.isnan(stats["optim/grad_norm"])
    assert stats["optim/value_grad_norm"] > 0
    assert math.isfinite(stats["objective/policy_loss"])
