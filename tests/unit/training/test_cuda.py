"""One iteration on a GPU: the same identities hold in bf16 there."""

import math

import pytest
import torch
from tiny_models import UNEVEN, iterate, make_config, make_prompts, make_store, make_stream

from apa_cli.evaluation.judge import evaluate
from apa_cli.models.device import select_runtime
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers
from apa_cli.training.state import initial_state
from apa_cli.training.state_files import Snapshot, load_training_state

pytestmark = pytest.mark.cuda


def begin(config, checkpoint=None):
    models = load_models(config, select_runtime("cuda", config.precision), checkpoint=checkpoint)
    return models, initial_state(config, models, make_stream(models, config))


@pytest.mark.parametrize("objective", ["apa", "awr", "ppo"])
@pytest.mark.parametrize("adapter", [0, 2])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_one_iteration_in_bf16(policy_dir, objective, adapter, critic):
    config = make_config(
        policy_dir(),
        device="cuda",
        precision="bf16",
        objective__name=objective,
        policy__adapter__r=adapter,
        value__kind=critic,
        policy__gradient_checkpointing=True,
    )
    models, state = begin(config)
    before = [p.detach().clone() for p in models.policy.trainable_parameters()]
    torch.manual_seed(0)
    metrics = iterate(config, models, state)
    assert all(math.isfinite(number) for number in metrics.values())
    assert abs(metrics["kl/to_init"]) <= 0.05
    after = models.policy.trainable_parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(p.is_cuda for p in models.policy.model.parameters())


def test_goes_on_from_a_checkpoint(policy_dir, tmp_path):
    config = make_config(policy_dir(), device="cuda", precision="bf16", policy__adapter__r=2)
    models, state = begin(config)
    torch.manual_seed(0)
    iterate(config, models, state)
    saved = make_store(tmp_path, config.checkpoint).save(Snapshot(models=models, state=state))
    expected = iterate(config, models, state)
    models, state = begin(config, saved)
    load_training_state(state, saved / "trainer_state")
    assert iterate(config, models, state) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_judging_leaves_the_gpus_random_state_alone(policy_dir):
    config = make_config(policy_dir(), device="cuda")
    models, _ = begin(config)
    before = torch.cuda.get_rng_state()
    scorers = load_scorers(config, models.policy, models.runtime)
    evaluate(models, scorers, make_prompts(models.policy.tokenizer, UNEVEN), config)
    assert torch.equal(torch.cuda.get_rng_state(), before)
