"""The update, where tests/independent does not reach: padding full of NaN, and recomputed layers."""

from dataclasses import fields, replace

import pytest
import torch
from torch.testing import assert_close
from update_setting import plainly, setting

from apa_cli.models.policy import base_of


@pytest.mark.parametrize("objective", ["apa", "awr", "ppo"])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_nan_where_nothing_counts_changes_nothing(policy_dir, objective, critic):
    found = []
    for nothing in (0.0, float("nan")):
        config, models, rollout, targets = setting(
            policy_dir(eos_logit=4.0), objective__name=objective, value__kind=critic
        )
        off = ~rollout.response_mask
        assert off.any()
        numbers = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
        spoiled = {
            name: t.masked_fill(off, nothing)
            for name, t in numbers.items()
            if getattr(t, "dtype", None) == torch.float32
        }
        assert set(spoiled) == {"rollout_logprobs", "entropy", "reference_logprobs", "values"}
        ids = rollout.response_ids if nothing == 0 else rollout.response_ids.masked_fill(off, 299)
        cut = {name: getattr(targets, name).masked_fill(off, nothing) for name in ("advantages", "returns")}
        torch.manual_seed(3)
        rollout = replace(rollout, **spoiled, response_ids=ids)
        stats = plainly(models, rollout, replace(targets, **cut), config)
        found.append((stats, models.named_parameters()))
    (clean, weights), (dirty, dirty_weights) = found
    assert dirty == pytest.approx(clean, rel=1e-6)
    for name, weight in weights.items():
        assert_close(dirty_weights[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_layers_are_recomputed_where_that_is_asked_for(policy_dir, rank):
    for asked in (False, True):
        changes = {"policy__adapter__r": rank, "policy__gradient_checkpointing": asked}
        _, models, _, _ = setting(policy_dir(), **changes)
        for model in (base_of(models.policy.model), models.value.trunk):
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules()) is asked
