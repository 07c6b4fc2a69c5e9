"""What a row means, and which rows are refused."""

import json

import pytest
from hh_data import hh_file
from refused import refusal

from apa_cli.data.files import read_files
from apa_cli.data.formats import parse_rows
from apa_cli.data.table import EmptyError, Findings, Table
from apa_cli.errors import UserError

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant: See you"


def table(*rows):
    return Table(
        source="prompts.jsonl", rows=list(rows), places=[f"prompts.jsonl, line {n + 1}" for n in range(len(rows))]
    )


def parse(*rows, format="auto", prompt_column="prompt"):
    return parse_rows(table(*rows), format=format, prompt_column=prompt_column)


def user(content):
    return {"role": "user", "content": content}


def test_text_keeps_the_prompt_as_it_is_and_the_other_columns():
    format, rows = parse({"prompt": " a\n", "n": 1}, {"prompt": "b", "tag": "x"})
    assert format == "text"
    assert [row.text for row in rows] == [" a\n", "b"]
    assert [row.columns for row in rows] == [{"n": 1, "tag": None}, {"n": None, "tag": "x"}]
    assert [row.messages for row in rows] == [None, None]


def test_hh_prompt_ends_at_the_last_assistant():
    format, rows = parse({"chosen": DIALOGUE, "rejected": "\n\nHuman: Hi\n\nAssistant: No"})
    assert format == "hh"
    assert rows[0].text == "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    assert rows[0].columns == {"chosen": DIALOGUE, "rejected": "\n\nHuman: Hi\n\nAssistant: No"}


def test_chat_with_several_messages_reads_as_paragraphs():
    messages = [{"role": "system", "content": "Be kind"}, {**user("Hi"), "name": None}]
    _, rows = parse({"prompt": messages})
    assert rows[0].text == "system: Be kind\n\nuser: Hi"
    assert rows[0].messages == ({"role": "system", "content": "Be kind"}, user("Hi"))


def assistant(content):
    return {"role": "assistant", "content": content}


def test_the_answer_at_the_end_is_left_out():
    dialogue = [user("a"), assistant("b"), user("c"), assistant("d")]
    _, rows = parse({"prompt": dialogue}, {"prompt": dialogue[:3]})
    assert [row.messages for row in rows] == [tuple(dialogue[:3])] * 2
    assert [row.answer for row in rows] == [assistant("d"), None]
    assert rows[0].text == "user: a\n\nassistant: b\n\nuser: c"


def test_sharegpt_and_the_columns_that_usually_hold_messages():
    turns = [("system", "S"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    format, rows = parse({"conversations": [{"from": who, "value": what} for who, what in turns], "id": 1})
    assert format == "chat"
    assert rows[0].messages == ({"role": "system", "content": "S"}, user("a"), assistant("b"), user("c"))
    assert (rows[0].answer, rows[0].columns) == (assistant("d"), {"id": 1})
    assert parse({"messages": [user("a")]})[1][0].messages == (user("a"),)
    assert parse({"messages": [user("a")], "prompt": "b"})[0] == "text"


def test_system_prompts_come_from_the_dialogue_then_the_row_then_the_setting():
    rows = [
        {"prompt": [{"role": "system", "content": "own"}, user("a")], "system": "row's"},
        {"prompt": [user("b")], "system": "row's"},
        {"prompt": [user("c")], "system": None},
    ]
    table = Table(source="p", rows=rows, places=["1", "2", "3"])
    _, parsed = parse_rows(table, format="auto", prompt_column="prompt", system_prompt="setting's")
    assert [row.messages[0]["content"] for row in parsed] == ["own", "row's", "setting's"]
    assert [len(row.messages) for row in parsed] == [2, 2, 2]


def test_every_dialogue_of_a_file_becomes_alternating_messages():
    rows = read_files({"hh": str(hh_file())}, source="hh", prompt_column="prompt")
    _, parsed = parse_rows(rows, format="hh_chat", prompt_column="prompt")
    assert len(parsed) == len(rows.rows) > 80
    for row in parsed:
        roles = [message["role"] for message in row.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert row.messages[-1]["content"] in row.columns["chosen"]


def test_all_of_a_message_is_kept_and_calls_and_tools_are_read_as_objects():
    call = {"id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    result = {
        "role": "tool",
        "tool_call_id": "1",
        "content": [{"type": "text", "text": "3"}, {"type": "text", "text": "!"}],
    }
    tools = [{"type": "function", "function": {"name": "add"}}]
    _, rows = parse({"prompt": [user("a"), calling, result], "tools": json.dumps(tools)}, {"prompt": [user("b")]})
    parsed = {"id": "1", "function": {"name": "add", "arguments": {"a": 1}}}
    assert rows[0].messages == (
        user("a"),
        {"role": "assistant", "content": "", "tool_calls": [parsed]},
        {"role": "tool", "tool_call_id": "1", "content": "3!"},
    )
    assert [row.columns["tools"] for row in rows] == [tools, None]
    assert rows[0].text == f"user: a\n\nassistant: {json.dumps(parsed)}\n\ntool: 3!"


def test_a_prompt_template_puts_text_around_a_prompt():
    settings = {"format": "auto", "prompt_column": "prompt", "prompt_template": "Q: {prompt}\nA:"}
    _, rows = parse_rows(table({"prompt": "{why}"}), **settings)
    assert rows[0].text == "Q: {why}\nA:"
    with pytest.raises(UserError, match=r"^data.prompt_template: set, but prompts.jsonl holds messages"):
        parse_rows(table({"prompt": [user("a")]}), **settings)


PAIR = {"chosen": DIALOGUE, "rejected": DIALOGUE}
EMPTY_ROWS = [
    ("auto", [{"prompt": None}, {"prompt": " \n"}, {"n": 1}, {"prompt": "a"}]),
    ("auto", [{"prompt": None}, {"prompt": []}, {"prompt": [user(" ")]}, {"prompt": [user("a")]}]),
    ("chat", [{"prompt": [user("b"), assistant(None), user("c")]}, {"prompt": [user(None)]}, {}, {"prompt": "a"}]),
    ("auto", [{"chosen": None, "rejected": None}, {"chosen": None}, {"chosen": ""}, PAIR]),
    ("hh_chat", [{"chosen": None}, {"chosen": "\n\nHuman:\n\nAssistant: hi"}, {"n": 1}, {"chosen": DIALOGUE}]),
]  # fmt: skip


@pytest.mark.parametrize(("format", "rows"), EMPTY_ROWS)
def test_null_and_empty_prompts_stop_or_are_dropped_and_counted(format, rows):
    with pytest.raises(EmptyError, match=r"^prompts.jsonl, line 1: "):
        parse(*rows, format=format)
    dropped = Findings()
    _, kept = parse_rows(table(*rows), format=format, prompt_column="prompt", dropped=dropped)
    assert [row.place for row in kept] == ["prompts.jsonl, line 4"]
    assert dropped.lines() == ["null or empty prompts are left out: 3 prompts, the first prompts.jsonl, line 1"]
    with pytest.raises(UserError, match="every prompt is null or empty"):
        parse_rows(table(*rows[:1], rows[0]), format="chat", prompt_column=next(iter(rows[0])), dropped=dropped)


def test_a_prompt_column_goes_before_chosen_and_rejected():
    assert parse({"prompt": "a", "chosen": DIALOGUE, "rejected": DIALOGUE})[0] == "text"


REFUSED = [
    ("auto", [{"messages": "a"}], ["no column 'prompt'", "data.prompt_column=messages"]),
    ("text", [{"prompt": "a"}, {"prompt": " \n"}], ["line 2", "'prompt' is empty"]),
    ("text", [{"prompt": [user("a")]}], ["line 1", "is a list", "data.format=chat"]),
    ("text", [{"prompt": "a\ud800"}], ["line 1", "surrogate", "character 2"]),
    ("chat", [{"prompt": []}], ["line 1", "no messages"]),
    ("chat", [{"prompt": '[{"role": "user", "content": "a"}]'}], ["line 1", "a string that holds messages"]),
    ("chat", [{"prompt": [{"from": "human", "text": "a"}]}], ["message 1 has no 'role'", "from, text"]),
    ("chat", [{"prompt": [{"role": "user", "content": None}]}], ["content of message 1 is null"]),
    ("chat", [{"prompt": [user("a"), assistant("b"), assistant("c")]}], ["before the answer is from 'assistant'"]),
    ("chat", [{"prompt": [{"role": "user", "content": ["a"]}]}], ["message 1 has a part that is a string"]),
    (
        "chat",
        [{"prompt": [user("a")], "tools": "calculator"}],
        ["line 1", "'tools' is a string, not a list of objects"],
    ),
    ("chat", [{"prompt": [user("a")], "tools": ["f"]}], ["line 1", "'tools' is a list, not a list of objects"]),
    ("chat", [{"prompt": [{**user("a"), "tool_calls": "f"}]}], ["'tool_calls' of message 1 is a string"]),
    ("hh_chat", [{"prompt": "a"}], ["no column 'chosen'", "data.format"]),
    ("hh_chat", [{"chosen": "\n\nHuman:\n\nAssistant: hi"}], ["line 1", "message 1 is empty"]),
]


@pytest.mark.parametrize(("format", "rows", "parts"), REFUSED)
def test_refused_rows_are_named(format, rows, parts):
    message = refusal(parse, *rows, format=format)
    assert message.startswith("prompts.jsonl")
    assert [part for part in parts if part not in message] == [], message
