"""Dialogues as lists of messages: read from a row or an HH prompt, shortened by whole turns, written as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from apa_cli.data.table import EmptyError, check_text, kind_of, listing
from apa_cli.errors import UserError

Message = dict[str, Any]  # role and content, strings; tool_calls, a list; any other field of the row's message
Messages = tuple[Message, ...]

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM = ("system", "developer")
SHAREGPT_ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
}
TOOLS = "tools"  # column of the functions that the assistant may call
CALLS = "tool_calls"
ASSISTANT = "\n\nAssistant:"  # begins the assistant's turn in an HH dialogue
_SHAPE = 'write each as {"role": "user", "content": "..."}'
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def read_messages(value: object, place: str, column: str) -> tuple[Messages, Message | None]:
    """The messages of a row up to the turn to be answered, and the answer if the row has one.

    A plain string is one user message; ShareGPT's {"from", "value"} is understood. An assistant's message at the end
    is the answer, which a sampling policy writes anew. Raises UserError.
    """
    if isinstance(value, str):
        if value.lstrip().startswith(("[{", "{'role'", '{"role"')):
            problem = f"{column!r} is a string that holds messages"
            raise UserError(place, problem, "store them as a list, in .jsonl or .parquet")
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        kind = UserError if value is not None else EmptyError
        raise kind(place, f"{column!r} is {kind_of(value)}, not a list of messages", "correct or remove it")
    if not value:
        raise EmptyError(place, f"{column!r} has no messages", "fill it in, or remove the row")
    return open_turn(each_message(value, place), place)


def each_message(value: Sequence[object], place: str) -> Messages:
    """`value` as messages. Raises UserError."""
    return tuple(_message(message, place, number) for number, message in enumerate(value, start=1))


def open_turn(messages: Messages, place: str) -> tuple[Messages, Message | None]:
    """The messages up to the last one of the user or a tool, and the answer if there is one. Raises UserError."""
    answer = messages[-1] if messages[-1]["role"] == "assistant" else None
    messages = messages if answer is None else messages[:-1]
    if not messages:
        raise UserError(place, "there is no message before the assistant's", "begin with a user message")
    last = messages[-1]
    if last["role"] not in ("user", "tool"):
        which = "the last message" if answer is None else "the message before the answer"
        problem = f"{which} is from {last['role']!r}, not from the user"
        raise UserError(place, problem, "end the prompt with a user message, or a tool's")
    check_text(last["content"], place, f"message {len(messages)}")
    return messages, answer


def hh_messages(prompt: str, *, torn: bool = False) -> list[Message]:
    """The turns of an HH prompt "\\n\\nHuman: …\\n\\nAssistant:" as messages, without the empty turn at its end.

    Text before the first turn is a system message, or the user's if the assistant speaks next. If the prompt is `torn`
    (cut on the left), that text is the rest of a turn; the rest of an assistant's turn is dropped, since templates
    begin with the user. Consecutive turns of one speaker are joined, since templates expect roles to alternate. A
    prompt without turns is one user message.
    """
    marks = list(_HH_TURN.finditer(prompt))
    if not marks:
        return [{"role": "user", "content": prompt.strip()}]
    ends = [mark.start() for mark in marks[1:]] + [len(prompt)]
    turns = [(_HH_ROLES[m[1]], prompt[m.end() : end].strip()) for m, end in zip(marks, ends, strict=True)]
    preface = prompt[: marks[0].start()].strip()
    if preface and turns[0][0] == "assistant":
        turns.insert(0, ("user", preface))
    elif preface and not torn:
        turns.insert(0, ("system", preface))
    if turns[-1] == ("assistant", ""):
        turns.pop()
    joined: list[Message] = []
    for role, content in turns:
        if joined and joined[-1]["role"] == role:
            joined[-1]["content"] = "\n\n".join(part for part in (joined[-1]["content"], content) if part)
        else:
            joined.append({"role": role, "content": content})
    return joined


def without_oldest_turn(messages: Sequence[Message]) -> Messages | None:
    """The system message and everything from the second user message on; None if there is only one."""
    start = next((i for i, message in enumerate(messages) if message["role"] not in SYSTEM), len(messages))
    later = [i for i, message in enumerate(messages) if i > start and message["role"] == "user"]
    return (*messages[:start], *messages[later[0] :]) if later else None


def as_text(messages: Sequence[Message]) -> str:
    """Messages for people and reward functions: a single one as it is, several as "role: content" with any calls."""
    if len(messages) == 1:
        return str(messages[0]["content"])

    def body(message: Message) -> str:
        calls = [json.dumps(call, ensure_ascii=False, default=str) for call in message.get(CALLS, ())]
        return "\n".join([*([message["content"]] if message["content"] or not calls else []), *calls])

    return "\n\n".join(f"{message['role']}: {body(message)}" for message in messages)


def read_tools(value: object, place: str) -> list[dict[str, Any]] | None:
    """The functions in a row's `tools` column: a list of objects, or one written as JSON; None if empty."""
    tools = _from_json(value) if isinstance(value, str) and value.strip() else value
    return _objects(tools, place, repr(TOOLS)) if tools else None


def _message(message: object, place: str, number: int) -> Message:
    if not isinstance(message, dict):
        raise UserError(place, f"message {number} is {kind_of(message)}, not an object", _SHAPE)
    names = ("role", "content")
    if "role" not in message and {"from", "value"} <= message.keys():
        names = ("from", "value")
        if (role := SHAREGPT_ROLES.get(str(message["from"]))) is None:
            problem = f"message {number} is from {message['from']!r}"
            raise UserError(place, problem, f"use one of {', '.join(SHAREGPT_ROLES)}")
    else:
        for name in names:
            if name not in message and not (name == "content" and message.get(CALLS)):
                raise UserError(place, f"message {number} has no {name!r} ({listing(list(message))})", _SHAPE)
        if (role := message["role"]) not in ROLES:
            raise UserError(place, f"message {number} has the role {role!r}", f"use one of {', '.join(ROLES)}")
    what, content = f"the content of message {number}", message.get(names[1])
    if content is None and message.get(CALLS):
        content = ""
    if isinstance(content, list):
        content = "".join(_text_part(part, place, what) for part in content)
    content = check_text(content, place, what, empty=True)
    others = {name: value for name, value in message.items() if name not in names and value is not None}
    if calls := others.pop(CALLS, None):
        others[CALLS] = [_call(call) for call in _objects(calls, place, f"{CALLS!r} of message {number}")]
    return {"role": role, "content": content, **others}


def _text_part(part: Any, place: str, what: str) -> str:
    """The text of {"type": "text", "text": ...}."""
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = f"of type {part['type']!r}" if isinstance(part, dict) and part.get("type") else kind_of(part)
    raise UserError(place, f"{what} has a part that is {kind}, and only text is read", "remove the row")


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call as templates expect it: its arguments are an object, even if the row stores them as JSON."""
    function = call.get("function")
    inner = function if isinstance(function, dict) else call
    if isinstance(inner.get("arguments"), str) and isinstance(own := _from_json(inner["arguments"]), dict):
        inner = {**inner, "arguments": own}
    return {**call, "function": inner} if isinstance(function, dict) else inner


def _objects(value: object, place: str, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        problem = f"{what} is {kind_of(value)}, not a list of objects, which a chat template could be given"
        raise UserError(place, problem, "correct it, or give it another name if it means something else")
    return value


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
