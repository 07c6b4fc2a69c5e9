"""Batches and the stream they come from."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_cli.data.prompts import Prompt, PromptStream, check_room, collate
from apa_cli.errors import UserError

PAD = 9


def prompt(*ids, messages=None, **columns):
    return Prompt(token_ids=ids, text=f"text {ids}", messages=messages, columns=columns)


def numbered(count):
    """Prompts 1..count of one token each, so that a batch's ids say which prompts it holds."""
    return [prompt(number) for number in range(1, count + 1)]


def stream(count, batch_size, seed=0):
    return PromptStream(numbered(count), batch_size=batch_size, seed=seed, pad_token_id=0)


def drawn(batch):
    return batch.prompt_ids[:, 0].tolist()


def test_collate_pads_on_the_left_and_masks_by_length():
    batch = collate([prompt(1, PAD, 3, tag="a"), prompt(4, tag="b", n=2)], PAD)
    assert batch.prompt_ids.tolist() == [[1, PAD, 3], [PAD, PAD, 4]]
    assert batch.prompt_mask.tolist() == [[True, True, True], [False, False, True]]
    assert (batch.prompt_ids.dtype, batch.prompt_mask.dtype) == (torch.long, torch.bool)
    assert batch.texts == ["text (1, 9, 3)", "text (4,)"]
    assert batch.columns == {"tag": ["a", "b"], "n": [None, 2]}
    assert batch.messages is None


def test_an_epoch_visits_every_prompt_once_in_a_fresh_order():
    batches = stream(12, 4)
    epochs = [[number for _ in range(3) for number in drawn(next(batches))] for _ in range(3)]
    assert all(sorted(epoch) == list(range(1, 13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != sorted(epochs[0])


def test_a_batch_may_straddle_epochs():
    batches = stream(5, 3)
    numbers = [number for _ in range(5) for number in drawn(next(batches))]
    assert [sorted(numbers[start : start + 5]) for start in (0, 5, 10)] == [[1, 2, 3, 4, 5]] * 3


def test_copies_of_a_prompt_stand_next_to_each_other():
    prompts = [prompt(1, 2, tag="a"), prompt(3, tag="b"), prompt(4, tag="c")]
    plain = next(PromptStream(prompts, batch_size=3, seed=0, pad_token_id=PAD))
    batch = next(PromptStream(prompts, batch_size=3, seed=0, pad_token_id=PAD, copies=2))
    twice = [row for row in plain.prompt_ids.tolist() for _ in range(2)]
    assert batch.prompt_ids.tolist() == twice
    assert batch.prompt_mask.tolist() == [[i != PAD for i in row] for row in twice]
    assert batch.columns == {"tag": [tag for tag in plain.columns["tag"] for _ in range(2)]}
    assert (plain.copies, batch.copies, len(batch.texts)) == (1, 2, 6)


def test_a_set_smaller_than_the_batch_wraps_round():
    assert Counter(drawn(next(stream(3, 7)))) in [Counter({1: 2, 2: 2, 3: 2, n: 3}) for n in (1, 2, 3)]


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 17), batch_size=st.integers(1, 20), before=st.integers(0, 12), seed=st.integers(0, 2**32 - 1)
)
def test_a_resumed_stream_goes_on_with_the_same_batches(count, batch_size, before, seed):
    straight = stream(count, batch_size, seed)
    for _ in range(before):
        next(straight)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = stream(count, batch_size, seed=5)
    next(resumed)
    resumed.load_state_dict(state)
    assert [drawn(next(resumed)) for _ in range(4)] == [drawn(next(straight)) for _ in range(4)]
    assert resumed.state_dict() == straight.state_dict()


def test_resuming_with_other_prompts_is_refused():
    state = stream(5, 2).state_dict()
    with pytest.raises(UserError, match=r"data.path: the training prompts changed .*5 then, 6 now"):
        stream(6, 2).load_state_dict(state)
    other = PromptStream([prompt(n) for n in (1, 2, 3, 4, 7)], batch_size=2, seed=0, pad_token_id=0)
    with pytest.raises(UserError, match="changed"):
        other.load_state_dict(state)


@pytest.mark.parametrize(("room", "fits"), [(8, True), (7, False), (None, True)])
def test_prompt_and_response_must_fit_the_policy(room, fits):
    """A prompt of 3 tokens and a response of 5 take 8."""
    prompts = [Prompt(token_ids=ids, text="x", messages=None, columns={}) for ids in [(1,), (1, 2, 3)]]
    limits = {"max_new_tokens": 5, "room": room, "known": 4, "tokenizer": None, "model": "policy"}
    if fits:
        check_room(prompts, **limits)
    else:
        with pytest.raises(UserError, match=r"are 8 tokens, and the policy takes 7; lower it to 2 or less"):
            check_room(prompts, **limits)
