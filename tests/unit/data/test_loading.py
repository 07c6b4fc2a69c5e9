"""From data settings to a training set and a held-out set."""

import gzip
import json

import pytest
from hh_data import SAMPLE, hh_file

from apa_cli.data import PromptStream, load_prompts
from apa_cli.errors import UserError


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_prompts(path, texts):
    return write_rows(path, [{"prompt": text} for text in texts])


def texts(prompts):
    return [prompt.text for prompt in prompts.prompts]


def test_held_out_prompts_are_chosen_by_the_seed_and_never_trained_on(tmp_path, tokenizer, config):
    path = write_prompts(tmp_path / "a.jsonl", [f"p{number % 30}" for number in range(90)])
    training, held_out = load_prompts(config(path), tokenizer, evaluation_prompts=10, seed=0)
    assert len(held_out) == len(set(texts(held_out))) == 10
    assert set(texts(training)) == {f"p{number}" for number in range(30)} - set(texts(held_out))
    assert (len(training), training.withheld) == (60, 30)
    again = load_prompts(config(path), tokenizer, evaluation_prompts=10, seed=0)
    assert again == (training, held_out)
    assert texts(load_prompts(config(path), tokenizer, evaluation_prompts=10, seed=1)[1]) != texts(held_out)


def test_a_larger_data_set_is_drawn_from_and_the_rest_is_as_ever(tmp_path, tokenizer, config):
    path = write_prompts(tmp_path / "a.jsonl", [f"p{number}" for number in range(40)])
    training, held_out = load_prompts(config(path, max_rows=10), tokenizer, evaluation_prompts=2, seed=0)
    assert (len(training), len(held_out)) == (8, 2)
    assert "10 of 40 rows were read (data.max_rows)" in training.describe()
    other, _ = load_prompts(config(path, max_rows=10), tokenizer, evaluation_prompts=2, seed=1)
    assert set(texts(other)) != set(texts(training))
    whole = [load_prompts(config(path, max_rows=most), tokenizer, evaluation_prompts=2, seed=0) for most in (40, None)]
    assert whole[0] == whole[1]
    assert "rows were read" not in whole[0][0].describe()


def test_eval_path_gives_the_rows_it_has(tmp_path, tokenizer, config):
    path = write_prompts(tmp_path / "a.jsonl", ["a", "b", "c", "b"])
    other = write_prompts(tmp_path / "b.jsonl", ["b", "x", "a"])
    settings = config(path, eval_path=str(other))
    for count in (3, 9):
        training, held_out = load_prompts(settings, tokenizer, evaluation_prompts=count, seed=0)
        assert (texts(training), texts(held_out)) == (["c"], ["b", "x", "a"])
        assert (training.withheld, held_out.source) == (3, str(other))
    assert "drawn" not in held_out.describe()


def test_rows_of_a_sorted_eval_path_are_drawn_from_all_of_it(tmp_path, tokenizer, config):
    rows = [f"{number:03}" for number in range(200)]
    other = write_prompts(tmp_path / "b.jsonl", rows)
    settings = config(write_prompts(tmp_path / "a.jsonl", ["a"]), eval_path=str(other))
    drawn = {seed: load_prompts(settings, tokenizer, evaluation_prompts=20, seed=seed)[1] for seed in range(3)}
    for held_out in drawn.values():
        found = texts(held_out)
        assert found == sorted(set(found)) and len(found) == 20  # as in the file, none twice
        assert sum(text < "100" for text in found) in range(4, 17)  # 10 ± 3 × 2.1: hypergeometric
        assert ": drawn by the seed from 200, " in held_out.describe()
        assert held_out.prompts[0].place == f"{other}, line {rows.index(found[0]) + 1}"
    assert texts(drawn[0]) != texts(drawn[1]) != texts(drawn[2])
    assert drawn[1] == load_prompts(settings, tokenizer, evaluation_prompts=20, seed=1)[1]


def test_too_few_prompts_to_hold_out(tmp_path, tokenizer, config):
    path = write_prompts(tmp_path / "a.jsonl", ["a", "b", "b"])
    with pytest.raises(UserError, match=r"evaluation.prompts: 2 prompts are to be held out, .* has 2 different"):
        load_prompts(config(path), tokenizer, evaluation_prompts=2, seed=0)
    with pytest.raises(UserError, match=r"data.eval_path: every prompt of .* is also held out"):
        load_prompts(config(path, eval_path=str(path)), tokenizer, evaluation_prompts=3, seed=0)


def test_overlong_prompts_are_cut_on_the_left(tmp_path, wrapping_tokenizer, config):
    path = write_prompts(tmp_path / "a.jsonl", ["abcdef", "xyz", "abcd"])
    training, _ = load_prompts(config(path, max_prompt_tokens=4), wrapping_tokenizer, evaluation_prompts=0, seed=0)
    assert texts(training) == ["def", "xyz", "bcd"]  # what the policy reads: <s> and three letters
    assert [len(prompt.token_ids) for prompt in training.prompts] == [4, 4, 4]
    assert all(prompt.token_ids[0] == 0 for prompt in training.prompts)
    assert (training.cut, training.dropped) == (2, 0)


def write_chats(path, *chats):
    """One row a chat; a chat is a list of (role, content)."""
    return write_rows(path, [{"prompt": [{"role": r, "content": c} for r, c in chat]} for chat in chats])


def test_same_text_with_other_tokens_is_held_out(tmp_path, chat_tokenizer, config):
    path = write_chats(tmp_path / "a.jsonl", [("system", "x"), ("user", "hi")], [("user", "other")])
    held_out = write_chats(tmp_path / "b.jsonl", [("user", "system: x\n\nuser: hi")])
    settings = config(path, eval_path=str(held_out))
    training, _ = load_prompts(settings, chat_tokenizer, evaluation_prompts=1, seed=0)
    assert texts(training) == ["other"]


def test_same_tokens_with_other_text_is_held_out(tmp_path, chat_tokenizer, config):
    turn = ("user", "two")
    path = write_chats(tmp_path / "a.jsonl", [("user", "a[user]one")], [turn])
    held_out = write_chats(tmp_path / "b.jsonl", [("user", "a"), ("user", "one")])
    settings = config(path, eval_path=str(held_out))
    training, _ = load_prompts(settings, chat_tokenizer, evaluation_prompts=1, seed=0)
    assert texts(training) == ["two"]


def test_overlong_prompts_are_dropped(tmp_path, tokenizer, config):
    path = write_prompts(tmp_path / "a.jsonl", ["abcdef", "xyz", "abcd", "abcde"])
    settings = config(path, max_prompt_tokens=4, overlong="drop")
    training, held_out = load_prompts(settings, tokenizer, evaluation_prompts=1, seed=0)
    assert sorted(texts(training) + texts(held_out)) == ["abcd", "xyz"]
    assert (training.cut, training.dropped, held_out.dropped) == (0, 2, 0)
    with pytest.raises(UserError, match=r"data.max_prompt_tokens: every prompt .* longer than 2 tokens"):
        load_prompts(config(path, max_prompt_tokens=2, overlong="drop"), tokenizer, evaluation_prompts=0, seed=0)


LONG = [("system", "S"), ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "three")]


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (75, [0, 1, 2, 3, 4, 5]),  # <s>, 9 + 9 + 12 + 9 + 12 + 11, and 11 of [assistant]
        (74, [0, 1, 2, 3, 4, 5]),
        (73, [0, 3, 4, 5]),
        (53, [0, 3, 4, 5]),
        (52, [0, 5]),
        (32, [0, 5]),
    ],
)
def test_long_chats_lose_their_oldest_turns_whole(tmp_path, chat_tokenizer, config, limit, kept):
    path = write_chats(tmp_path / "a.jsonl", LONG)
    training, _ = load_prompts(config(path, max_prompt_tokens=limit), chat_tokenizer, evaluation_prompts=0, seed=0)
    (prompt,) = training.prompts
    turns = [LONG[i] for i in kept]
    expected = "<s>" + "".join(f"[{role}]{content}" for role, content in turns) + "[assistant]"
    assert chat_tokenizer.decode(prompt.token_ids) == expected
    assert [tuple(message.values()) for message in prompt.messages] == turns
    assert prompt.text == "\n\n".join(f"{role}: {content}" for role, content in turns)
    assert training.cut == (len(kept) < 6)
    assert ("without their oldest turns" in training.describe()) == (len(kept) < 6)


def test_a_chat_whose_last_turn_is_too_long_is_dropped_and_counted(tmp_path, chat_tokenizer, config):
    path = write_chats(tmp_path / "a.jsonl", LONG, [("user", "hi"), ("assistant", "no")])
    training, _ = load_prompts(config(path, max_prompt_tokens=30), chat_tokenizer, evaluation_prompts=0, seed=0)
    assert (texts(training), training.cut, training.dropped, training.answered) == (["hi"], 0, 1, 1)
    assert "1 without the answer they end with" in training.describe()
    with pytest.raises(UserError, match=r"longer than 9 tokens, its oldest turns left out; raise it$"):
        load_prompts(config(path, max_prompt_tokens=9), chat_tokenizer, evaluation_prompts=0, seed=0)


@pytest.mark.parametrize("path", list(dict.fromkeys([SAMPLE, hh_file()])), ids=lambda path: path.name)
def test_hh_dialogues(path, tokenizer, config):
    """The sample, and the real file where there is one: expectations straight from the raw lines."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    training, held_out = load_prompts(config(path, max_prompt_tokens=100_000), tokenizer, evaluation_prompts=16, seed=0)
    expected = {"\n\nAssistant:".join(row["chosen"].split("\n\nAssistant:")[:-1]) + "\n\nAssistant:" for row in rows}
    assert set(texts(training)) | set(texts(held_out)) == expected
    assert not set(texts(training)) & set(texts(held_out))
    assert len(held_out) == 16
    assert len(training) + training.withheld == len(rows)
    assert all(prompt.columns["chosen"].startswith(prompt.text) for prompt in training.prompts)
    assert set(training.prompts[0].columns) == {"chosen", "rejected"}
    batch = next(PromptStream(training.prompts, batch_size=8, seed=0, pad_token_id=1))
    unpadded = [ids[mask] for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
    assert tokenizer.batch_decode(unpadded) == batch.texts
