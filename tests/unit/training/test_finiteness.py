"""What is not finite reaches no weight, optimizer, moment or target; it is named, counted, and at last fatal."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from update_setting import attended, setting

from apa_cli.algorithms import RunningMoments
from apa_cli.errors import DivergedError
from apa_cli.training.optimizer import make_optimizer
from apa_cli.training.state import objective_of
from apa_cli.training.steward.finiteness import fault_in
from apa_cli.training.steward.health import Health
from apa_cli.training.targets import shape_scores
from apa_cli.training.update import Progress

NAN, INF = math.nan, math.inf
OBJECTIVES = {
    "apa": {},
    "awr-shared": {"objective__name": "awr", "value__kind": "shared"},
    "ppo": {"objective__name": "ppo"},
}


def spoil(x, row, position=0, value=NAN):
    x = x.clone()
    x[(row, position) if x.dim() == 2 else row] = value
    return x


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["rollout log-probs", "reference log-probs", "values"])
def test_a_spoilt_row_is_found_and_what_is_spoilt_is_named(policy_dir, name, value):
    _, _, rollout, _ = setting(policy_dir(), rows=4)
    field = name.replace(" ", "_").replace("log-probs", "logprobs")
    beyond = rollout.response_mask[1].sum()  # where nothing counts
    for position, sound in ((beyond, True), (0, False)):
        if position < rollout.response_mask.shape[1]:
            spoilt = replace(rollout, **{field: spoil(getattr(rollout, field), 1, position, value)})
            assert spoilt.sound.tolist() == [True, sound, True, True]
    assert fault_in(spoilt, torch.tensor([1, 2])) == name


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_targets_are_those_of_a_rollout_without_the_spoilt_rows(policy_dir, kind):
    config, _, rollout, _ = setting(policy_dir(eos_logit=3.0), rows=8, **OBJECTIVES[kind])
    scores = torch.arange(8.0)
    spoilt_scores = spoil(scores, 3)
    spoilt = replace(
        rollout, reference_logprobs=spoil(rollout.reference_logprobs, 5, value=-INF), values=spoil(rollout.values, 6)
    )
    usable = spoilt.sound & spoilt_scores.isfinite()
    kept = torch.tensor([0, 1, 2, 4, 7])
    assert usable.nonzero().flatten().tolist() == kept.tolist()

    def targets(rollout, scores, usable):
        moments = RunningMoments()
        shaped = shape_scores(scores, rollout.ended, moments, config.objective, usable)
        return moments, objective_of(config.objective).targets(rollout, shaped, usable, config.advantage, group_size=1)

    moments, found = targets(spoilt, spoilt_scores, usable)
    alone_moments, alone = targets(rollout.select(kept), scores[kept], torch.ones(5).bool())
    assert moments.count == 5
    assert moments.mean == pytest.approx((0 + 1 + 2 + 4 + 7) / 5)
    assert moments.state_dict() == pytest.approx(alone_moments.state_dict())
    T = alone.advantages.shape[1]
    assert_close(found.advantages[kept, :T], alone.advantages)
    assert_close(found.returns[kept, :T], alone.returns)
    assert found.advantages.isfinite().all()
    assert found.advantages[~usable].abs().sum() == 0


def weights(models):
    named = [*models.policy.model.named_parameters(), *models.value.named_parameters(prefix="critic")]
    return {name: p.detach().clone() for name, p in named}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_minibatch_with_a_spoilt_row_changes_nothing(policy_dir, monkeypatch, kind):
    """Weights, optimizer and means are those of an update that has only the other minibatches."""

    def run(order, usable=None):
        config, models, rollout, targets = setting(
            policy_dir(eos_logit=4.0), training__epochs_per_rollout=1, **OBJECTIVES[kind]
        )
        if usable is not None:
            rollout = replace(rollout, values=spoil(rollout.values, 5))
            targets = replace(targets, usable=usable)
        optimizer = make_optimizer(models, config.optimizer)
        health = Health.at_start(config.training)
        progress = Progress(order=torch.tensor(order))
        stats, _ = attended(models, rollout, targets, config, optimizer=optimizer, progress=progress, health=health)
        return models, optimizer, stats, health

    usable = torch.ones(12, dtype=torch.bool)
    usable[5] = False
    models, optimizer, stats, health = run([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], usable)
    others, other_optimizer, expected, _ = run([0, 1, 2, 3, 8, 9, 10, 11])
    assert stats.pop("optim/skipped_minibatches") == 1
    assert expected.pop("optim/skipped_minibatches") == 0
    assert stats == expected
    assert health.skipped == 0
    for name, weight in weights(models).items():
        assert torch.equal(weight, weights(others)[name]), name
    for index, entry in optimizer.state_dict()["state"].items():
        assert entry["step"] == other_optimizer.state_dict()["state"][index]["step"] == 2


def poison_gradient(models, targets):
    name, parameter = next((n, p) for n, p in models.policy.model.named_parameters() if "dense_h_to_4h.weight" in n)
    parameter.register_hook(lambda gradient: torch.full_like(gradient, INF))
    return f"gradient of policy {name}", targets


def poison_values(models, targets):
    models.value.head.register_forward_hook(lambda module, args, output: output + INF)
    return "objective/value_loss", targets


def poison_policy_target(models, targets):
    targets = replace(targets, advantages=torch.full_like(targets.advantages, 3e38))  # overflows squared
    return "objective/policy_loss", targets


def poison_weights(models, targets):
    with torch.no_grad():
        models.value.head.linear.weight[0, 3] = NAN
    return "weights of critic head.linear.weight", targets


POISONS = [poison_gradient, poison_values, poison_policy_target, poison_weights]


@pytest.mark.parametrize("poison", POISONS)
def test_no_step_is_made_and_the_culprit_is_named(policy_dir, monkeypatch, poison):
    config, models, rollout, targets = setting(policy_dir(), training__max_skipped=4, training__epochs_per_rollout=1)
    culprit, targets = poison(models, targets)
    before = weights(models)
    optimizer = make_optimizer(models, config.optimizer)
    health = Health.at_start(config.training)
    stats, work = attended(models, rollout, targets, config, optimizer=optimizer, health=health)
    assert stats["optim/skipped_minibatches"] == work.skipped == health.skipped == 3
    assert all(math.isnan(stats[name]) for name in ("objective/policy_loss", "objective/value_loss", "optim/grad_norm"))
    assert not optimizer.state
    assert all(p.grad is None for p in [*models.policy.model.parameters(), *models.value.parameters()])
    for name, weight in weights(models).items():
        assert_close(weight, before[name], equal_nan=True, atol=0, rtol=0)

    # the fourth in a row is in the next iteration
    progress = Progress()
    with pytest.raises(DivergedError) as caught:
        attended(models, rollout, targets, config, optimizer=optimizer, health=health, progress=progress)
    assert str(caught.value).startswith(
        "training diverged: 4 minibatches in a row were skipped (training.max_skipped), "
        f"not finite: {culprit}; at iteration 7, λ 0.3, scores from 0 to 0; "
    )
    assert progress.rows == 4  # a checkpoint made now goes on behind the minibatch
    assert health.skipped == 0  # with as many tries again


def test_a_sound_minibatch_ends_the_row(policy_dir):
    config, models, rollout, targets = setting(policy_dir(), training__max_skipped=2, training__epochs_per_rollout=1)
    usable = torch.ones(12, dtype=torch.bool)
    usable[0] = usable[8] = False
    spoilt = replace(rollout, values=spoil(spoil(rollout.values, 0), 8))
    marked = replace(targets, usable=usable)
    stats, _ = attended(models, spoilt, marked, config, progress=Progress(order=torch.arange(12)))
    assert stats["optim/skipped_minibatches"] == 2


def test_the_first_skip_of_an_update_is_said_and_no_other(policy_dir, caplog):
    logging.getLogger("apa_cli").propagate = True
    config, models, rollout, targets = setting(policy_dir(), training__epochs_per_rollout=2)
    _, targets = poison_gradient(models, targets)
    attended(models, rollout, targets, config)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith("a minibatch is skipped, not finite: gradient of policy ")
    assert said[0].endswith("; iteration 7, λ 0.3, scores from 0 to 0")
