"""Judging is repeatable, disturbs nothing, and says what the responses say."""

import math
import random

import numpy as np
import pytest
import torch
from tiny_models import CPU, UNEVEN, make_config, make_prompts, vowels

from apa_cli.algorithms import exact_kl
from apa_cli.data.prompts import collate
from apa_cli.evaluation.judge import evaluate
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.sources import add_passes


def setting(folder, **changes):
    config = make_config(folder, **changes)
    models = load_models(config, CPU)
    return config, models, load_scorers(config, models.policy, CPU), make_prompts(models.policy.tokenizer, UNEVEN[:7])


def chance(prompts, responses):
    return [random.random() + np.random.rand() + torch.rand(1).item() for _ in responses]


def constant(prompts, responses):
    return [3.0] * len(responses)


def states():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
    )


def test_random_states_are_left_alone(policy_dir):
    config, models, scorers, prompts = setting(policy_dir(), rollout__batch_size=4)
    scorers.reward.function = chance
    before = states()
    evaluate(models, scorers, prompts, config)
    assert states() == before


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


def test_metrics_are_those_of_the_responses(policy_dir):
    """Against one rollout of all prompts, drawn from the same seed."""
    config, models, scorers, prompts = setting(policy_dir(eos_logit=3.0), rollout__batch_size=7, seed=5)
    judgement = evaluate(models, scorers, prompts, config)
    torch.manual_seed(5 + 0x5EED)
    rollout = add_passes(
        sample(models.policy, collate(prompts, models.policy.pad_token_id), config.generation),
        models.policy,
        models.reference,
        None,
        temperature=1.0,
        token_budget=10**6,
        policy_pass=False,
    )
    mask = rollout.response_mask
    metrics = judgement.metrics
    assert [r.prompt for r in judgement.responses] == UNEVEN[:7]
    assert metrics["eval/response_length"] == pytest.approx(mask.sum().item() / 7)
    assert metrics["eval/eos_rate"] == pytest.approx(rollout.ended.sum().item() / 7)
    assert metrics["eval/entropy"] == pytest.approx(rollout.entropy[mask].mean().item(), rel=1e-5)
    texts = [r.response for r in judgement.responses]
    assert [r.score for r in judgement.responses] == pytest.approx(vowels([], texts))
    assert metrics["eval/reward"] == pytest.approx(sum(vowels([], texts)) / 7)
    assert "eval/evaluator" not in metrics


def test_kl_is_measured_from_the_reference(policy_dir):
    """The k1 estimate over 512 responses of one token lies near the exact KL of its distribution."""
    config, models, scorers, _ = setting(
        policy_dir(seed=8), reference__path=str(policy_dir()), generation__max_new_tokens=1, rollout__batch_size=256
    )
    prompts = make_prompts(models.policy.tokenizer, ["fox"] * 512)
    judgement = evaluate(models, scorers, prompts, config)
    ids = torch.tensor([prompts[0].token_ids])
    with torch.no_grad():
        policy = models.policy.model(ids).logits[:, -1:]
        with models.reference.active() as reference:
            exact = exact_kl(policy, reference.model(ids).logits[:, -1:]).item()
    error = torch.tensor([r.kl for r in judgement.responses]).std().item() / 512**0.5
    assert exact > 0.1
    assert judgement.metrics["eval/kl"] == pytest.approx(exact, abs=4 * error)


def test_a_separate_evaluator_judges_beside_the_reward(policy_dir):
    config, models, scorers, prompts = setting(
        policy_dir(), evaluation__reward__kind="function", evaluation__reward__function="tiny_models:vowels"
    )
    scorers.evaluator.function = constant
    judgement = evaluate(models, scorers, prompts, config)
    assert judgement.metrics["eval/evaluator"] == 3.0
    assert all(r.evaluator == 3.0 for r in judgement.responses)
    assert judgement.metrics["eval/reward"] != 3.0


def test_nothing_is_trained_or_left_in_train_mode(policy_dir):
    config, models, scorers, prompts = setting(policy_dir(), policy__adapter__r=2)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in models.policy.model.named_parameters()}
    evaluate(models, scorers, prompts, config)
    assert not models.policy.model.training
    for name, p in models.policy.model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_response_without_a_score_is_left_out_by_itself(policy_dir, bad):
    config, models, scorers, prompts = setting(
        policy_dir(), evaluation__reward__kind="function", evaluation__reward__function="tiny_models:vowels"
    )
    initial = evaluate(models, scorers, prompts, config)
    assert not any("unscored" in name for name in initial.metrics)

    scorers.reward.function = lambda prompts, responses: [bad, *vowels(prompts[1:], responses[1:])]
    metrics = evaluate(models, scorers, prompts, config, initial.responses).metrics
    scores = [response.score for response in initial.responses]
    assert metrics["eval/reward"] == pytest.approx(sum(scores[1:]) / len(scores[1:]))
    assert metrics["eval/tie_rate"] == 1  # of the pairs that are left
    assert metrics["eval/unscored"] == pytest.approx(1 / len(scores))
    assert "eval/evaluator_unscored" not in metrics
    assert metrics["eval/evaluator"] == initial.metrics["eval/evaluator"]

    scorers.reward.function = lambda prompts, responses: [bad] * len(responses)
    metrics = evaluate(models, scorers, prompts, config, initial.responses).metrics
    missing = {name for name, value in metrics.items() if math.isnan(value)}
    names = ("reward", "reward_low", "reward_high", "win_rate", "tie_rate", "lose_rate")
    assert missing == {f"eval/{name}" for name in names}
    assert metrics["eval/unscored"] == 1
