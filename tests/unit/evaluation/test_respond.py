"""What is measured of a response: exact KL against a plain loop, estimates against it, the stream of draws."""

import contextlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import CPU, UNEVEN, make_config, make_prompts

from apa_cli.evaluation.respond import own_random_states, respond
from apa_cli.models.reference import Reference
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers


def setting(folder, *, moved=0.0, texts=UNEVEN, **changes):
    """Models whose policy has left the reference by random steps of size `moved`."""
    config = make_config(folder, **changes)
    models = load_models(config, CPU)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in models.policy.trainable_parameters():
            parameter += moved * torch.randn_like(parameter)
    return config, models, make_prompts(models.policy.tokenizer, texts)


def answer(config, models, prompts, **options):
    return respond(models, load_scorers(config, models.policy, CPU), prompts, config, **options)


def of_itself(models, initial):
    """The initial policy, with itself as the reference."""
    return replace(models, policy=initial, reference=Reference(initial, frozen=initial))


def plain_kl(models, prompt, response_ids, temperature):
    """Σ_t Σ_a π (log π − log π_ref), one unpadded sequence, position by position, token by token."""
    ids = torch.tensor([[*prompt.token_ids, *response_ids]])
    with torch.no_grad():
        policy = models.policy.model(ids).logits[0].double() / temperature
        with models.reference.active() as frozen:
            reference = frozen.model(ids).logits[0].double() / temperature
    total = 0.0
    for t in range(len(response_ids)):
        position = len(prompt.token_ids) + t - 1
        ours = (policy[position] - policy[position].exp().sum().log()).tolist()
        theirs = (reference[position] - reference[position].exp().sum().log()).tolist()
        total += sum(np.exp(a) * (a - b) for a, b in zip(ours, theirs, strict=True))
    return total


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_exact_kl_equals_a_plain_loop(policy_dir, rank, temperature):
    config, models, prompts = setting(
        policy_dir(eos_logit=2.0),
        moved=0.05,
        policy__adapter__r=rank,
        generation__temperature=temperature,
        training__microbatch_tokens=40,
    )
    responses = answer(config, models, prompts)
    assert len({len(r.token_ids) for r in responses}) > 1
    for prompt, found in zip(prompts, responses, strict=True):
        expected = plain_kl(models, prompt, found.token_ids, temperature)
        assert expected > 1e-4
        assert found.kl_exact == pytest.approx(expected, rel=1e-4, abs=1e-6)  # float32 logits, padded and batched


@pytest.mark.parametrize("rank", [0, 2])
def test_estimates_agree_with_the_exact_mean(policy_dir, rank):
    config, models, prompts = setting(
        policy_dir(), moved=0.05, texts=UNEVEN * 50, rollout__batch_size=100, policy__adapter__r=rank,
        training__microbatch_tokens=4096,
    )  # fmt: skip
    responses = answer(config, models, prompts)
    exact, k1, k3 = (np.array([getattr(r, name) for r in responses]) for name in ("kl_exact", "kl", "kl_k3"))
    assert exact.mean() > 0.05
    for estimate in (k1, k3):
        difference = estimate - exact
        assert abs(difference.mean()) < 4 * difference.std(ddof=1) / 20
    assert exact.std() < k1.std()  # less noise: what it is for
    assert (k3 >= 0).all()
    assert (k1 < 0).any()


@pytest.mark.parametrize("rank", [0, 2])
def test_the_initial_policy_has_no_kl_to_itself(policy_dir, rank):
    """As a policy that has not moved, and as the initial policy of one that has."""
    config, models, prompts = setting(policy_dir(), policy__adapter__r=rank)
    moved_config, moved, _ = setting(policy_dir(), moved=0.1, policy__adapter__r=rank)
    fresh = answer(config, models, prompts)
    with moved.reference.active() as initial:
        again = answer(moved_config, of_itself(moved, initial), prompts)
    for found in (fresh, again):
        assert [r.kl_exact for r in found] == pytest.approx([0.0] * 8, abs=1e-6)
        assert [r.kl for r in found] == pytest.approx([0.0] * 8, abs=1e-4)  # sampled with a cache, which rounds
    assert [r.token_ids for r in again] == [r.token_ids for r in fresh]


def test_an_adapter_that_was_trained_before_is_the_initial_policy(policy_dir, adapter_dir):
    config, models, prompts = setting(policy_dir(), policy__adapter__path=str(adapter_dir))
    bare_config, bare, _ = setting(policy_dir())
    with models.reference.active() as initial:
        found = answer(config, of_itself(models, initial), prompts)
    assert [r.kl_exact for r in found] == pytest.approx([0.0] * 8, abs=1e-6)
    assert [r.token_ids for r in found] != [r.token_ids for r in answer(bare_config, bare, prompts)]


def test_greedy_decoding_draws_nothing(policy_dir):
    config, models, prompts = setting(policy_dir(), moved=0.05, evaluation__decoding="greedy")
    first = answer(config, models, prompts)
    assert answer(config, models, prompts, stream=1) == first
    for prompt, found in zip(prompts, first, strict=True):  # the likeliest token each time
        ids = list(prompt.token_ids)
        for token in found.token_ids:
            with torch.no_grad():
                assert models.policy.model(torch.tensor([ids])).logits[0, -1].argmax().item() == token
            ids.append(token)


def test_entropy_is_summed_over_the_response(policy_dir):
    config, models, prompts = setting(policy_dir(eos_logit=2.0), texts=UNEVEN[:3])
    for prompt, found in zip(prompts, answer(config, models, prompts), strict=True):
        with torch.no_grad():
            logits = models.policy.model(torch.tensor([[*prompt.token_ids, *found.token_ids]])).logits[0].double()
        logits = logits[len(prompt.token_ids) - 1 : -1]
        expected = torch.distributions.Categorical(logits=logits).entropy().sum().item()
        assert found.entropy == pytest.approx(expected, rel=1e-4)


def test_random_states_are_put_back_after_an_error():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    def draws():
        return torch.rand(1).item(), random.random(), np.random.rand()

    before = states()
    first = ()
    with contextlib.suppress(RuntimeError), own_random_states(3, CPU):
        first = draws()
        raise RuntimeError
    assert states() == before
    with own_random_states(3, CPU):
        assert draws() == first
    with own_random_states(4, CPU):
        other = draws()
    assert all(a != b for a, b in zip(first, other, strict=True))
