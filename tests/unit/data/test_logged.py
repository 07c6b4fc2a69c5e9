"""Logged responses: which column holds them, what of it is the response, and the token ids that stand for it."""

from __future__ import annotations

import copy
import json

import pytest
from hh_data import SAMPLE
from refused import refusal
from tiny_models import make_config

from apa_cli.data import PromptStream, load_prompts
from apa_cli.data.logged import ResponseEncoder, load_logged
from apa_cli.data.template import Template
from apa_cli.errors import UserError

EOS = 1
ASK = "\n\nHuman: hi\n\nAssistant:"


@pytest.fixture
def chat(tokenizer):
    """Ends every turn with </s> and a line feed."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return chat


@pytest.fixture
def load(tmp_path, tokenizer):
    """The rows that are learnt from, of a file with these rows."""

    def read(rows, *, reader=tokenizer, name="a.jsonl", content=None, stop=(), **changes):
        path = tmp_path / name
        path.write_text(content if content is not None else "".join(json.dumps(row) + "\n" for row in rows))
        changes = {"generation__max_new_tokens": 20, "rollout__source": "offline", **changes}
        config = make_config("unused", data__path=str(path), **changes)
        prompts, _ = load_prompts(config.data, reader, evaluation_prompts=0, seed=0)
        encoder = ResponseEncoder(
            template=Template(reader),
            eos_token_ids=[EOS],
            closing=EOS,
            closing_turn=EOS,
            stop=stop,
            max_new_tokens=config.generation.max_new_tokens,
        )
        return load_logged(prompts, config, encoder)

    return read


@pytest.fixture
def said(tokenizer):
    """(prompt, response, whether it has an EOS, whether it had ended) of each row."""
    return lambda logged: [
        (
            row.text,
            tokenizer.decode([i for i in row.logged.token_ids if i != EOS]),
            row.logged.token_ids[-1] == EOS,
            row.logged.ended,
        )
        for row in logged.rows
    ]


@pytest.mark.parametrize(
    ("response", "text", "closed", "ended"),
    [
        (" yes", " yes", True, True),
        ("", "", True, True),
        ("x" * 19, "x" * 19, True, True),
        ("x" * 20, "x" * 20, False, False),
        ("yes</s></s>more", "yes", True, True),
        ("one\nHuman: two STOP", "one\nHuman:", False, True),
    ],
)
def test_a_response_gets_an_end_unless_it_has_one_or_is_cut(load, said, response, text, closed, ended):
    logged = load([{"prompt": "p", "response": response}], stop=["STOP", "Human:"])
    assert said(logged) == [("p", text, closed, ended)]
    assert (logged.prompts, logged.cut, logged.astray, logged.rows[0].logged.score) == (1, not ended, 0, None)
    assert logged.rows[0].logged.token_ids.count(EOS) == closed


def test_pairs_are_two_responses_to_a_prompt(load, said):
    logged = load([{"prompt": "p", "chosen": " good", "rejected": " bad", "response": "?"}])
    assert [row[1] for row in said(logged)] == [" good", " bad"]
    assert [row[1] for row in said(load([{"prompt": "p", "chosen": "a", "rejected": "b", "response": "c"}],
                                        data__response_column="response"))] == ["c"]  # fmt: skip
    assert [row.logged.index for row in logged.rows] == [0, 1]


def test_scores_come_from_the_column_that_is_named(load, said):
    rows = [{"prompt": "p", "response": "a", "score": 2}, {"prompt": "p", "response": "b", "score": -0.5}]
    assert [row.logged.score for row in load(rows, data__score_column="score").rows] == [2.0, -0.5]
    pairs = [{"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 8.5, "score_rejected": 1}]
    assert [row.logged.score for row in load(pairs, data__score_column="score").rows] == [8.5, 1.0]
    table = "prompt,response,reward\np,a,0.25\n"
    logged = load([], name="a.csv", content=table, data__score_column="reward")
    assert [row.logged.score for row in logged.rows] == [0.25]


def test_a_rejected_dialogue_that_went_another_way_is_left_out(load, said):
    rows = [
        {"chosen": f"{ASK} good", "rejected": "\n\nHuman: ho\n\nAssistant: bad"},
        {"chosen": f"{ASK} good", "rejected": f"{ASK} b\n\nHuman: c\n\nAssistant: bad"},
    ]
    logged = load(rows)
    assert [row[1] for row in said(logged)] == [" good", " good"]
    assert logged.astray == 2
    assert "2 left out that continue another dialogue" in logged.describe()


def test_a_prompt_that_is_cut_keeps_its_responses(load, said):
    logged = load([{"chosen": f"{ASK} good", "rejected": f"{ASK} bad"}], data__max_prompt_tokens=6)
    assert said(logged)[0][:2] == ("stant:", " good")
    assert said(logged)[1][:2] == ("stant:", " bad")
    assert all(row.torn for row in logged.rows)
    assert logged.describe().endswith("of the prompts 1 cut on the left")


def test_a_column_of_hh_dialogues_that_is_named_gives_its_last_turn(load, said):
    rows = [{"chosen": f"{ASK} good", "rejected": f"{ASK} bad", "score": 2}]
    for name, answer in (("chosen", " good"), ("rejected", " bad")):
        logged = load(rows, data__format="hh", data__response_column=name, data__score_column="score")
        assert said(logged) == [(ASK, answer, True, True)]
        assert [row.logged.score for row in logged.rows] == [2.0]


def test_every_dialogue_of_the_sample_is_learnt_from(load, said):
    logged = load([], name="hh.jsonl", content=SAMPLE.read_text(encoding="utf-8"), generation__max_new_tokens=4000)
    dialogues = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    wanted = [row[name].rsplit("\n\nAssistant:", 1)[1] for row in dialogues for name in ("chosen", "rejected")]
    assert [row[1] for row in said(logged)] == wanted
    assert logged.cut == 0


@pytest.mark.parametrize(
    "answer",
    [
        "yes",
        [{"role": "assistant", "content": "yes"}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}],
    ],
)
def test_a_chat_response_ends_as_the_template_ends_a_turn(load, chat, answer):
    rows = [{"prompt": [{"role": "user", "content": "q"}], "chosen": answer, "rejected": "no"}]
    first = load(rows, reader=chat).rows[0]
    assert chat.decode(first.token_ids) == "[user]q</s>\n[assistant]"
    assert chat.decode(first.logged.token_ids) == "yes</s>"  # and not the line feed behind it
    assert first.logged.ended


def test_the_answer_that_a_dialogue_ends_with(load, chat):
    turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "yes")]
    messages = [{"role": role, "content": content} for role, content in turns]
    sharegpt = [{"from": "human", "value": "s"}, {"from": "gpt", "value": ""}]
    rows = [{"messages": messages, "score": 1}, {"messages": sharegpt, "score": 2}]
    logged = load(rows, reader=chat, generation__max_new_tokens=40, data__score_column="score")
    assert [chat.decode(row.token_ids) for row in logged.rows] == [
        "[user]q</s>\n[assistant]a</s>\n[user]r</s>\n[assistant]",
        "[user]s</s>\n[assistant]",
    ]
    assert [chat.decode(row.logged.token_ids) for row in logged.rows] == ["yes</s>", "</s>"]
    assert [row.logged.score for row in logged.rows] == [1.0, 2.0]
    (row,) = load([{"messages": messages, "response": "no"}], reader=chat).rows
    assert chat.decode(row.logged.token_ids) == "no</s>"


def test_dialogues_that_end_with_an_answer_or_not(load, chat):
    answered = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(UserError, match="line 2: its messages end without the assistant's answer, and those of other"):
        load([{"messages": answered}, {"messages": answered[:1]}], reader=chat)
    with pytest.raises(UserError, match=r"nothing\), and no messages that end with the assistant's; set data.response"):
        load([{"messages": answered[:1]}], reader=chat)


def test_a_chat_that_went_another_way_is_left_out(load, chat):
    other = [{"role": "user", "content": "z"}, {"role": "assistant", "content": "yes"}]
    rows = [{"prompt": [{"role": "user", "content": "q"}], "chosen": other, "rejected": "no"}]
    assert load(rows, reader=chat).astray == 1


def test_a_response_is_read_after_its_prompt():
    """A tokenizer that marks the first word of a text, as SentencePiece does, must not mark a response's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 0, "▁a": 1, "▁b": 2, "b": 3, ":": 4, "▁": 5, "a": 6}
    inner = Tokenizer(models.BPE(vocab=words, merges=[("▁", "a"), ("▁", "b")]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    from apa_cli.data.prompts import Prompt

    encoder = ResponseEncoder(
        template=Template(tokenizer), eos_token_ids=[0], closing=0, closing_turn=0, stop=[], max_new_tokens=9
    )
    prompt = Prompt(token_ids=(1, 4), text="a:", messages=None, columns={})
    assert tokenizer("b")["input_ids"] == [2]
    assert encoder([prompt, prompt], ["b", " b"]) == [([3, 0], True), ([2, 0], True)]


BAD = [
    ([{"prompt": "p", "response": "x"}], {"data__response_column": "answer"}, "has no column 'answer' beside"),
    ([{"prompt": "p", "response": "x"}], {"data__score_column": "score"}, "has no column 'score', of data.score_col"),
    ([{"prompt": "p", "chosen": "x", "rejected": "y", "score": 1}], {"data__score_column": "score"},
     "has no column 'score_chosen', of data.score_column=score"),
    ([{"prompt": "p", "response": "\ud800"}], {}, "line 1: 'response' holds half a surrogate pair"),
    ([{"prompt": "p", "response": "x", "score": ""}], {"data__score_column": "score"}, "'score' is a string, not"),
    ([{"prompt": "p", "response": "x", "score": True}], {"data__score_column": "score"}, "'score' is true or false"),
    ([{"prompt": "p", "response": "x", "score": 10**400}], {"data__score_column": "score"}, "'score' is not finite"),
    ([{"prompt": "p", "response": "x", "score": float("nan")}], {"data__score_column": "score"},
     "'score' is not finite"),
    ([{"chosen": f"{ASK} good", "rejected": None}], {"data__format": "hh"}, "'rejected' is null"),
    ([{"prompt": "p", "response": None}, {"prompt": "q", "response": " "}], {"data__empty": "drop"},
     "no response continues its prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "changes", "line"), BAD)
def test_what_is_wrong_is_named(load, rows, changes, line):
    assert line in refusal(load, rows, **changes)


@pytest.mark.parametrize("name", ["tool_calls", "reasoning_content"])
def test_an_answer_of_more_than_content_is_not_learnt_from_in_part(load, chat, name):
    answer = {"role": "assistant", "content": "yes", name: [{"name": "f"}]}
    for row in ({"prompt": [{"role": "user", "content": "a"}, answer]}, {"prompt": "a", "response": [answer]}):
        with pytest.raises(UserError, match=f"line 1: the response holds '{name}', and of a logged response only"):
            load([row], reader=chat, data__format="chat")


def test_null_and_empty_responses_may_be_dropped(load, said):
    pairs = [
        {"chosen": f"{ASK} good", "rejected": None},
        {"chosen": None, "rejected": f"{ASK} bad"},
        {"chosen": f"{ASK} fine", "rejected": f"{ASK} "},
    ]
    logged = load(pairs, data__format="hh", data__empty="drop")
    assert [text for _, text, _, _ in said(logged)] == [" good", " fine"]
    assert len(logged.empty) == 2
    assert f"2 left out as null or empty (the first: {logged.empty[0]})" in logged.describe()
    rows = [{"prompt": "p", "response": None}, {"prompt": "p", "response": ""}, {"prompt": "p", "response": "x"}]
    assert [text for _, text, _, _ in said(load(rows, data__empty="drop"))] == ["x"]
    assert [text for _, text, _, _ in said(load(rows[1:]))] == ["", "x"]


def test_the_stream_knows_when_responses_or_scores_changed(load, said):
    def stream(response, score):
        rows = load([{"prompt": "p", "response": response, "score": score}], data__score_column="score").rows
        return PromptStream(rows, batch_size=1, seed=0, pad_token_id=0)

    state = stream("a", 1.0).state_dict()
    stream("a", 1.0).load_state_dict(state)
    for changed in (stream("b", 1.0), stream("a", 2.0)):
        with pytest.raises(UserError, match="changed since the checkpoint"):
            changed.load_state_dict(state)


def test_hh_as_a_chat_gives_the_answer_in_the_template(load, chat):
    rows = [{"chosen": f"{ASK} good", "rejected": f"{ASK} bad"}]
    logged = load(rows, reader=chat, data__format="hh_chat")
    assert [chat.decode(row.token_ids) for row in logged.rows] == ["[user]hi</s>\n[assistant]"] * 2
    assert [chat.decode(row.logged.token_ids) for row in logged.rows] == ["good</s>", "bad</s>"]


def test_a_chat_of_which_the_prompt_is_the_end_alone(load, chat):
    """Oldest turns left out, and a system prompt that the logged dialogue has not."""
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    asked = [{"role": role, "content": content} for role, content in turns]
    rows = [{"prompt": asked, "chosen": [*asked, {"from": "gpt", "value": "yes"}], "rejected": "no"}]
    logged = load(rows, reader=chat, data__max_prompt_tokens=40, data__system_prompt="S")
    assert chat.decode(logged.rows[0].token_ids) == "[system]S</s>\n[user]three</s>\n[assistant]"
    assert [chat.decode(row.logged.token_ids) for row in logged.rows] == ["yes</s>", "no</s>"]
