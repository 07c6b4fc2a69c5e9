"""Judging is repeatable, disturbs nothing, and says what the responses say."""

import random

import numpy as np
import pytest
import torch
from tiny_models import CPU, UNEVEN, make_config, make_prompts

from apa_cli.evaluation.judge import evaluate
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers


def setting(folder, **changes):
    config = make_config(folder, **changes)
    models = load_models(config, CPU)
    return config, models, load_scorers(config, models.policy, CPU), make_prompts(models.policy.tokenizer, UNEVEN[:7])


def chance(prompts, responses):
    return [random.random() + np.random.rand() + torch.rand(1).item() for _ in responses]


def test_every_judgement_draws_the_same(policy_dir):
    config, models, scorers, prompts = setting(policy_dir(), rollout__batch_size=4)
    scorers.reward.function = chance
    torch.manual_seed(1)
    first = evaluate(models, scorers, prompts, config)
    torch.manual_seed(2)
    random.seed(2)
    torch.rand(10)
    assert evaluate(models, scorers, prompts, config) == first
    config.seed = 1
    assert evaluate(models, scorers, prompts, config) != first


def test_opponents_come_from_a_stream_of_their_own(policy_dir):
    """The initial policy against itself wins and loses alike, and a policy is compared with what was drawn then."""
    config, models, scorers, prompts = setting(policy_dir(), rollout__batch_size=4)
    initial = evaluate(models, scorers, prompts, config)
    ids = [[r.token_ids for r in judged] for judged in (initial.responses, initial.opponents)]
    assert all(a != b for a, b in zip(*ids, strict=True))
    again = evaluate(models, scorers, prompts, config, initial.opponents)
    assert again == initial
    wins = sum(r.score > o.score for r, o in zip(initial.responses, initial.opponents, strict=True))
    assert again.metrics["eval/win_rate"] == pytest.approx(wins / 7)
    assert "eval/win_rate" not in evaluate(models, scorers, prompts, config, []).metrics


def test_nothing_is_trained_or_left_in_train_mode(policy_dir):
    config, models, scorers, prompts = setting(policy_dir(), policy__adapter__r=2)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in models.policy.model.named_parameters()}
    evaluate(models, scorers, prompts, config)
    assert not models.policy.model.training
    for name, p in models.policy.model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None
