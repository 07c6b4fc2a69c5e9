"""No pass that is not needed: rows that each network computes in an iteration, and the tokens in them, counted."""

from collections import defaultdict

import pytest
import torch
from tiny_models import CPU, make_config, uneven_batch
from update_setting import plainly

from apa_cli.algorithms import Targets
from apa_cli.models.roles import load_models
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.sources import add_passes

ROWS, NEW, EPOCHS, MINIBATCH = 12, 6, 2, 4


class Watched:
    """(rows, tokens) of every batch that goes into each network, seen at its embedding."""

    def __init__(self, models):
        self.shapes = defaultdict(list)
        networks = {"policy": models.policy.model, "reference": models.reference.frozen.model}
        if hasattr(models.value, "trunk"):
            networks["value"] = models.value.trunk
        for name, network in networks.items():
            network.get_input_embeddings().register_forward_hook(self._note(name))

    def _note(self, name):
        return lambda module, inputs, output: self.shapes[name].append(tuple(inputs[0].shape))

    def take(self):
        taken, self.shapes = dict(self.shapes), defaultdict(list)
        return taken


def rows(shapes):
    return {name: sum(n for n, _ in batches) for name, batches in shapes.items()}


def setting(policy_dir, objective, value):
    config = make_config(
        policy_dir(),
        objective__name=objective,
        value__kind=value,
        generation__max_new_tokens=NEW,
        rollout__batch_size=ROWS,
        training__epochs_per_rollout=EPOCHS,
        training__minibatch_size=MINIBATCH,
    )
    models = load_models(config, CPU)
    return config, models, Watched(models)


def with_passes(rollout, models, objective, token_budget=100_000):
    return add_passes(
        rollout,
        models.policy,
        models.reference,
        models.value,
        temperature=1.0,
        token_budget=token_budget,
        policy_pass=objective == "ppo",
    )


@pytest.mark.parametrize("value", ["separate", "shared"])
@pytest.mark.parametrize("objective", ["apa", "awr", "ppo"])
def test_rows_of_each_network_in_an_iteration(policy_dir, objective, value, monkeypatch):
    """Beyond sampling: the reference once; the policy for PPO's ratio or a shared critic, once for both; the critic."""
    config, models, watched = setting(policy_dir, objective, value)
    kept = sample(models.policy, uneven_batch(models.policy, ROWS), config.generation)
    sampled = watched.take()
    assert set(sampled) == {"policy"}
    assert rows(sampled)["policy"] <= ROWS * NEW  # the prompts, and each token but the last
    heads = []
    plain = models.policy.logprobs
    monkeypatch.setattr(models.policy, "logprobs", lambda *a, **k: heads.append(1) or plain(*a, **k))
    rollout = with_passes(kept, models, objective)
    expected = {"reference": ROWS}
    if objective == "ppo" or value == "shared":
        expected["policy"] = ROWS
    if value == "separate":
        expected["value"] = ROWS
    assert rows(watched.take()) == expected
    assert bool(heads) == (objective == "ppo")  # a shared critic alone needs no log-probs
    assert (rollout.rollout_logprobs is kept.rollout_logprobs) == (objective != "ppo")  # those of the KL that is logged
    usable = torch.ones(ROWS, dtype=torch.bool)
    targets = Targets(advantages=torch.randn(ROWS, NEW), returns=torch.randn(ROWS, NEW), usable=usable)
    plainly(models, rollout, targets, config)
    expected = {"policy": EPOCHS * ROWS, **({"value": EPOCHS * ROWS} if value == "separate" else {})}
    assert rows(watched.take()) == expected
