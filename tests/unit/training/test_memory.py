"""Running out of memory: the same gradient in smaller pieces, and a clear end where pieces cannot be smaller.

There is no GPU here that could be filled: the allocator's error is raised by hand, in the middle of a backward pass.
"""

import gc
import logging
import weakref

import pytest
import torch
from torch.testing import assert_close
from update_setting import attended, setting

from apa_cli.config.schema import TrainingConfig
from apa_cli.errors import UserError
from apa_cli.training.optimizer import make_optimizer
from apa_cli.training.state import objective_of
from apa_cli.training.steward.health import Health
from apa_cli.training.steward.memory import enough_memory, is_out_of_memory, within_memory

KINDS = {
    "apa-separate": {},
    "apa-shared-lora": {"value__kind": "shared", "policy__adapter__r": 2},
    "ppo-separate-lora": {"objective__name": "ppo", "policy__adapter__r": 2},
}
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Small:
    """A device that holds micro-batches of so many tokens; larger ones fail between the two backward passes."""

    def __init__(self, config, tokens, error=torch.OutOfMemoryError):
        self.tokens, self.error, self.failures, self.live = tokens, error, 0, []
        self.objective = objective_of(config.objective)
        self.real = self.objective.value_loss
        self.objective.value_loss = self

    def __call__(self, values, part, returns):
        if len(values) * (part.prompt_ids.shape[1] + part.response_ids.shape[1]) > self.tokens:
            self.failures += 1
            self.live.append(weakref.ref(values))
            raise self.error(OOM)
        return self.real(values, part, returns)


def optimizer_that_keeps_gradients(models, config):
    optimizer = make_optimizer(models, config.optimizer)
    kept = []

    def step():
        named = [*models.policy.model.named_parameters(), *models.value.named_parameters(prefix="critic")]
        kept.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    optimizer.step = step
    return optimizer, kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_gradients_are_those_of_a_run_that_never_failed(policy_dir, caplog, kind, error):
    def run(small):
        config, models, rollout, targets = setting(
            policy_dir(eos_logit=4.0), **KINDS[kind], training__microbatch_tokens=400, training__minibatch_size=6
        )
        optimizer, kept = optimizer_that_keeps_gradients(models, config)
        health = Health.at_start(config.training)
        device = Small(config, 60, error) if small else None
        torch.manual_seed(3)
        objective = device.objective if device else None
        stats, _ = attended(models, rollout, targets, config, optimizer=optimizer, health=health, objective=objective)
        return kept, stats, health.tokens, device

    whole, whole_stats, tokens, _ = run(small=False)
    assert tokens == 400
    logging.getLogger("apa_cli").propagate = True
    parts, stats, tokens, device = run(small=True)
    assert device.failures >= 1
    assert tokens == 50
    assert len(parts) == len(whole) == 4
    for part, expected in zip(parts, whole, strict=True):
        assert part.keys() == expected.keys()
        for name, gradient in part.items():
            assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert stats == pytest.approx(whole_stats, rel=1e-4, abs=1e-6)
    assert stats["optim/skipped_minibatches"] == 0
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(said) == device.failures  # once for each lowering, and never again for the minibatches that follow
    assert f"training.microbatch_tokens is now {tokens} instead of" in said[-1]


def test_nothing_of_the_failed_attempt_is_kept_alive(policy_dir):
    config, models, rollout, targets = setting(policy_dir(eos_logit=4.0), training__microbatch_tokens=400)
    device = Small(config, 60)
    real, checked = device.real, []

    def check(values, *rest):
        checked.append([ref() is None for ref in device.live])
        return real(values, *rest)

    device.real = check
    gc.disable()
    try:
        attended(models, rollout, targets, config, objective=device.objective)
    finally:
        gc.enable()
    assert device.live
    assert all(all(gone) for gone in checked)


def test_the_budget_is_halved_until_the_micro_batches_are_smaller():
    """Ten rows of ten tokens each within 1000: 500, 250 and 125 change nothing, 62 does."""
    health = Health.at_start(TrainingConfig(microbatch_tokens=1000))
    tried = []

    def work(tokens):
        tried.append(tokens)
        if tokens > 30:
            raise torch.OutOfMemoryError(OOM)
        return "done"

    def plan(tokens):
        size = min(10, max(1, tokens // 10))
        return [range(size)] * (10 // size) + ([range(10 % size)] if 10 % size else [])

    undone = []
    assert within_memory(work, health, plan, undo=lambda: undone.append(1), where="a test") == "done"
    assert tried == [1000, 62, 31, 15]
    assert health.tokens == 15
    assert len(undone) == 3


def test_what_cannot_be_done_in_pieces_says_what_to_lower(policy_dir):
    config, models, rollout, targets = setting(policy_dir())
    optimizer = make_optimizer(models, config.optimizer)

    def step():
        raise torch.OutOfMemoryError(OOM)

    optimizer.step = step
    with pytest.raises(UserError, match=r"^policy\.adapter\.r: AdamW's .* do not fit .*; train fewer"):
        attended(models, rollout, targets, config, optimizer=optimizer)
    for error in (ValueError("no memory"), RuntimeError("shapes do not fit")):
        with pytest.raises(type(error)), enough_memory("key", "it does", "lower it"):
            raise error


def test_other_errors_pass():
    def work(tokens):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(work, Health.at_start(TrainingConfig()), lambda tokens: [[1]], where="a test")
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
