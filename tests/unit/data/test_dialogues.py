"""HH prompts as messages."""

import pytest

from apa_cli.data.messages import hh_messages


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("\n\nHuman: hi\n\nAssistant:", [user("hi")]),
        ("Human: hi\n\nAssistant: ", [user("hi")]),
        (
            "\n\nHuman: hi\n\nAssistant: hello\nthere\n\nHuman: what now?\n\nAssistant:",
            [user("hi"), assistant("hello\nthere"), user("what now?")],
        ),
        ("\n\nHuman: hi", [user("hi")]),
        ("\n\nHuman: a\n\nb\n\nAssistant:", [user("a\n\nb")]),
        ("\n\nHuman: the Human: of it\nHuman: inline\n\nAssistant:", [user("the Human: of it\nHuman: inline")]),
        ("\n\nHuman: hi\n\nAssistant: Sure, here", [user("hi"), assistant("Sure, here")]),
        ("Be brief.\n\nHuman: hi\n\nAssistant:", [{"role": "system", "content": "Be brief."}, user("hi")]),
        ("What now?\n\nAssistant:", [user("What now?")]),
        (" Write a poem. ", [user("Write a poem.")]),
    ],
)
def test_turns_become_messages(prompt, messages):
    assert hh_messages(prompt) == messages


@pytest.mark.parametrize(
    ("kept", "messages"),
    [
        ("ing else?\n\nHuman: hi\n\nAssistant:", [user("hi")]),
        (
            "o I do?\n\nAssistant: rest\n\nHuman: thanks\n\nAssistant:",
            [user("o I do?"), assistant("rest"), user("thanks")],
        ),
        ("o I do?\n\nAssistant:", [user("o I do?")]),
        ("\n\nHuman: hi\n\nAssistant:", [user("hi")]),
        ("stant:", [user("stant:")]),
    ],
)
def test_what_a_cut_leaves_of_a_turn_is_no_system_message(kept, messages):
    assert hh_messages(kept, torn=True) == messages
