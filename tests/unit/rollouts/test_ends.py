"""Stop strings with a tokenizer of whole words, the built-in task's, which transformers' own criterion cannot do."""

from __future__ import annotations

import pytest
import torch
from refused import refusal
from transformers import AutoTokenizer

from apa_cli.assets.resolve import resolve_path
from apa_cli.config.schema import GenerationConfig
from apa_cli.rollouts.backends.ends import Ends

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def words():
    return AutoTokenizer.from_pretrained(resolve_path("builtin:reviews/policy"))


def lengths(tokenizer, stop, *texts, **generation):
    ids = tokenizer(list(texts))["input_ids"]
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    assert len(set(map(len, ids))) == 1
    ends = Ends(len(texts), [], tokenizer, GenerationConfig(stop=stop, **generation), CPU)
    rows = torch.tensor(ids)
    for step in range(1, rows.shape[1] + 1):
        ends.update(rows[:, :step])
    return ends.lengths.tolist()


def test_a_stop_string_of_whole_words(words):
    assert lengths(words, ["very good"], "the beer was very good .", "the beer was good . very") == [5, 0]
    assert lengths(words, ["cold", "beer"], "the beer was cold", "it was cold .") == [2, 3]


def test_a_stop_string_as_decoding_writes_it(words):
    """Without the blank between word and full stop, and of a part of a word."""
    assert lengths(words, ["good."], "it was good . we", "good was it . we") == [4, 0]
    assert lengths(words, ["ollar", "ee"], "the coffee was cold", "the wine was cold") == [2, 0]


def test_a_stop_string_before_min_new_tokens_does_not_end(words):
    assert lengths(words, ["good"], "good it was good .", min_new_tokens=2) == [4]


@pytest.mark.parametrize(("stop", "character"), [("good \N{SNOWMAN}", "\N{SNOWMAN}"), ("\n\nhuman:", "\n")])
def test_a_stop_string_that_can_never_be_written_is_refused(words, stop, character):
    assert refusal(Ends, 1, [], words, GenerationConfig(stop=["good", stop]), CPU).startswith(
        f"generation.stop: {stop!r} ends no response: the policy's tokenizer has no {character!r}; take it out"
    )
