"""What is sampled is what is recorded; what counts ends at the first EOS or stop string; log-probs are full-softmax."""

from dataclasses import replace

import pytest
import torch
from tiny_models import CPU, make_config, make_prompts, uneven_batch

from apa_cli.data.prompts import collate
from apa_cli.models.roles import load_models
from apa_cli.rollouts.backends.choice import TokenChooser
from apa_cli.rollouts.generation import decode, sample, spoken_ids


def load(folder, **changes):
    config = make_config(folder, **changes)
    return load_models(config, CPU).policy, config.generation


@pytest.fixture
def played(monkeypatch):
    """played(policy, rows): make generation "sample" these ids, then pad; returns nothing."""

    def play(policy, rows):
        step = iter(range(10**6))

        def noise(self, count, vocabulary, device):
            """So small for the token to play that it wins, as small as nothing else."""
            t = next(step)
            ids = torch.tensor([row[t] if t < len(row) else 5 for row in rows])
            assert len(ids) == count
            return torch.full((count, vocabulary), 1e30).scatter_(1, ids[:, None], 1e-30)

        monkeypatch.setattr(TokenChooser, "noise", noise)

    return play


@pytest.mark.parametrize("pad", [True, False])
def test_a_response_counts_up_to_its_first_eos(policy_dir, played, pad):
    """With pad == eos the real EOS is counted, and none of the padding behind it."""
    policy, generation = load(policy_dir(pad=pad))
    eos = policy.tokenizer.eos_token_id
    assert (policy.pad_token_id == eos) == (not pad)
    rows = [[eos], [40, eos], [40, 41, 42, 43, 44, eos], [40, 41, 42, 43, 44, 45], [40, 41, eos, eos]]
    played(policy, rows)
    batch = uneven_batch(policy, 5)
    rollout = sample(policy, batch, generation)
    assert rollout.response_mask.sum(dim=1).tolist() == [1, 2, 6, 6, 3]
    assert rollout.ended.tolist() == [True, True, True, False, True]
    for row, ids in enumerate([[eos], [40, eos], rows[2], rows[3], [40, 41, eos]]):
        assert rollout.response_ids[row][rollout.response_mask[row]].tolist() == ids
        assert rollout.response_token_ids()[row] == ids
    assert (rollout.rollout_logprobs[rollout.response_mask] < 0).all()
    assert (rollout.rollout_logprobs[~rollout.response_mask] == 0).all()
    assert (rollout.entropy[rollout.response_mask] > 0).all()
    assert (rollout.entropy[~rollout.response_mask] == 0).all()


def test_generation_stops_when_every_row_has_ended(policy_dir, played):
    policy, generation = load(policy_dir(pad=False))
    played(policy, [[40, policy.tokenizer.eos_token_id], [policy.tokenizer.eos_token_id]])
    assert sample(policy, uneven_batch(policy, 2), generation).response_ids.shape == (2, 2)


def test_eos_in_the_prompt_ends_nothing(policy_dir, played):
    policy, generation = load(policy_dir(pad=False))
    eos = policy.tokenizer.eos_token_id
    prompts = make_prompts(policy.tokenizer, ["fox", "fox"])
    prompts = [replace(p, token_ids=(eos, *p.token_ids, eos)) for p in prompts]
    played(policy, [[40] * 6, [40, eos]])
    rollout = sample(policy, collate(prompts, policy.pad_token_id), generation)
    assert rollout.response_mask.sum(dim=1).tolist() == [6, 2]
    assert rollout.prompt_mask.all()


def test_every_end_token_of_the_model_ends(policy_dir, played):
    policy, generation = load(policy_dir(pad=False, generation={"eos_token_id": [70, 71]}))
    played(policy, [[70], [40, 71], [40, 40, 0], [40] * 6])
    rollout = sample(policy, uneven_batch(policy, 4), generation)
    assert rollout.response_mask.sum(dim=1).tolist() == [1, 2, 3, 6]
    assert rollout.ended.tolist() == [True, True, True, False]


def test_a_response_counts_up_to_the_token_that_completes_a_stop_string(policy_dir, played):
    policy, generation = load(policy_dir(pad=False), generation__stop=["Human:"], generation__max_new_tokens=10)
    ids = policy.tokenizer("good Human: hello")["input_ids"]
    ending = next(n for n in range(1, len(ids)) if "Human:" in policy.tokenizer.decode(ids[:n]))
    assert 1 < ending < len(ids)
    halves = policy.tokenizer("Hu")["input_ids"] + policy.tokenizer("man:")["input_ids"]
    played(policy, [ids, [40] * 10, halves])
    prompts = make_prompts(policy.tokenizer, ["Human: hello", "say Human:", "the"])  # the prompts hold it as well
    rollout = sample(policy, collate(prompts, policy.pad_token_id), generation)
    assert rollout.response_mask.sum(dim=1).tolist() == [ending, 10, len(halves)]
    assert rollout.ended.tolist() == [True, False, True]
    assert decode(policy, rollout, generation.stop)[0] == "good "
    assert decode(policy, rollout, generation.stop)[2] == ""


@pytest.mark.parametrize("ending", ["stop", "EOS", "length"])
def test_a_stop_string_before_min_new_tokens_is_text_as_any_other(policy_dir, played, ending):
    """What a reward reads is what is trained on: the first stop string ended nothing."""
    policy, generation = load(policy_dir(pad=False), generation__stop=["Human:"])
    head = policy.tokenizer("good Human: hello")["input_ids"]
    tail = {"stop": policy.tokenizer(" dog Human:")["input_ids"], "EOS": [policy.tokenizer.eos_token_id], "length": []}
    ids = [*head, *tail[ending]]
    played(policy, [[*ids, 40, 40]])
    limits = replace(generation, min_new_tokens=len(head), max_new_tokens=len(ids) + 2 * (ending != "length"))
    rollout = sample(policy, collate(make_prompts(policy.tokenizer, ["the"]), policy.pad_token_id), limits)
    assert rollout.response_ids[rollout.response_mask].tolist() == ids
    (text,) = decode(policy, rollout, generation.stop)
    assert text == ("good Human: hello dog " if ending == "stop" else "good Human: hello")
    assert policy.tokenizer.decode(spoken_ids(policy, rollout, [text])[0]) == text


def test_a_stop_string_that_begins_in_the_prompt_does_not_count(policy_dir, played):
    policy, generation = load(policy_dir(pad=False), generation__stop=["Human:"])
    tail = policy.tokenizer("man:")["input_ids"]
    played(policy, [tail + [40] * 6])
    prompts = make_prompts(policy.tokenizer, ["say Hu"])
    assert not sample(policy, collate(prompts, policy.pad_token_id), generation).ended.any()


def test_a_stop_string_of_characters_that_are_several_tokens(policy_dir, played):
    policy, generation = load(policy_dir(), generation__stop=["\N{SNOWMAN}"])
    snowman, comet = (policy.tokenizer(text)["input_ids"] for text in ("\N{SNOWMAN}", "\N{COMET}"))
    assert len(snowman) == 3
    assert snowman[:2] == comet[:2]
    played(policy, [[*comet, *snowman], [*snowman, 40]])
    rollout = sample(policy, uneven_batch(policy, 2), generation)
    assert rollout.response_mask.sum(dim=1).tolist() == [6, 3]
    assert decode(policy, rollout, generation.stop) == ["\N{COMET}", ""]


def test_text_is_what_the_response_adds_to_its_prompt(policy_dir, played):
    policy, generation = load(policy_dir(), generation__stop=["Human:", "dog"])
    ids = policy.tokenizer(" the lazy dog Human: x")["input_ids"]
    played(policy, [ids, [*policy.tokenizer(" fox")["input_ids"], policy.tokenizer.eos_token_id]])
    prompts = make_prompts(policy.tokenizer, ["the quick", "brown"])
    rollout = sample(policy, collate(prompts, policy.pad_token_id), replace(generation, max_new_tokens=len(ids)))
    assert decode(policy, rollout, generation.stop) == [" the lazy ", " fox"]
