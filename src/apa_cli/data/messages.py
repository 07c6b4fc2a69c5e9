"""Dialogues as lists of messages: read from a row, shortened by whole turns, written for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from apa_cli.data.table import EmptyError, check_text, kind_of, listing
from apa_cli.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM = ("system", "developer")
SHAREGPT_ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
}

TOOLS = "tools"  # the column beside a dialogue with the functions that its assistant may call
CALLS = "tool_calls"

Message = dict[str, Any]  # role and content, strings; tool_calls, a list; whatever else the row's message has
Messages = tuple[Message, ...]


def read_messages(value: object, place: str, column: str) -> tuple[Messages, Message | None]:
    """The messages of one row up to the turn that is to be answered, and the answer to it where there is one.

    A plain string is one user message. {"from", "value"} as in ShareGPT is read too. An assistant's message at the end
    is the answer, in whose place a policy that samples writes its own. Raises UserError, naming the row.
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
    """Raises UserError for what is no message."""
    return tuple(_message(message, place, number) for number, message in enumerate(value, start=1))


def open_turn(messages: Messages, place: str) -> tuple[Messages, Message | None]:
    """The dialogue up to the user's last word, or a tool's, and the answer to it where there is one.

    Raises UserError.
    """
    answer = messages[-1] if messages[-1]["role"] == "assistant" else None
    if answer is not None:
        messages = messages[:-1]
    if not messages:
        raise UserError(place, "there is no message before the assistant's", "begin with a user message")
    last = messages[-1]
    if last["role"] not in ("user", "tool"):
        problem = f"the last message is from {last['role']!r}, not from the user"
        if answer is not None:
            problem = f"the message before the answer is from {last['role']!r}, not from the user"
        raise UserError(place, problem, "end the prompt with a user message, or a tool's")
    check_text(last["content"], place, f"message {len(messages)}")
    return messages, answer


def with_system(messages: Messages, system_prompt: str | None) -> Messages:
    """`system_prompt` in front, where the dialogue has no system message of its own."""
    if system_prompt is None or any(message["role"] in SYSTEM for message in messages):
        return messages
    return ({"role": "system", "content": system_prompt}, *messages)


def read_tools(value: object, place: str) -> list[dict[str, Any]] | None:
    """The functions of a row's column `tools`: a list of objects, or such a list as JSON; None where it is empty."""
    tools = _from_json(value) if isinstance(value, str) and value.strip() else value
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        problem = f"{TOOLS!r} is {kind_of(tools)}, not a list of objects, which a chat template could be given"
        raise UserError(place, problem, "correct it, or give the column another name if it means something else")
    return tools


def without_oldest_turn(messages: Sequence[Message]) -> Messages | None:
    """The system message, and the dialogue from its second user message on; None where it has one alone."""
    start = next((i for i, message in enumerate(messages) if message["role"] not in SYSTEM), len(messages))
    later = [i for i, message in enumerate(messages) if i > start and message["role"] == "user"]
    return (*messages[:start], *messages[later[0] :]) if later else None


def as_text(messages: Sequence[Message]) -> str:
    """What people and reward functions read: one message as it is, of several each after its role."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {_spoken(message)}" for message in messages)


def _spoken(message: Message) -> str:
    """What a message says, its calls as JSON."""
    calls = [json.dumps(call, ensure_ascii=False, default=str) for call in message.get(CALLS, ())]
    return "\n".join([*([message["content"]] if message["content"] or not calls else []), *calls])


def _message(message: object, place: str, number: int) -> Message:
    shape = 'write each as {"role": "user", "content": "..."}'
    if not isinstance(message, dict):
        raise UserError(place, f"message {number} is {kind_of(message)}, not an object", shape)
    if "role" not in message and {"from", "value"} <= message.keys():
        role, content = _sharegpt_role(message["from"], place, number), message["value"]
        names = {"from", "value"}
    else:
        calls = bool(message.get(CALLS))  # beside them content may be null, or be missing
        for name in ("role", *(() if calls else ("content",))):
            if name not in message:
                raise UserError(place, f"message {number} has no {name!r} ({listing(list(message))})", shape)
        role, content = message["role"], message.get("content")
        content, names = "" if calls and content is None else content, {"role", "content"}
        if role not in ROLES:
            raise UserError(place, f"message {number} has the role {role!r}", f"use one of {', '.join(ROLES)}")
    what = f"the content of message {number}"
    content = check_text(_parts_as_text(content, place, what), place, what, empty=True)
    others = {name: value for name, value in message.items() if name not in names and value is not None}
    if own := others.pop(CALLS, None):
        others[CALLS] = _calls(own, place, number)
    return {"role": role, "content": content, **others}


def _parts_as_text(content: object, place: str, what: str) -> object:
    """The text of [{"type": "text", "text": ...}], in one; anything but a list as it is."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = f"of type {part['type']!r}" if isinstance(part, dict) and part.get("type") else kind_of(part)
            raise UserError(place, f"{what} has a part that is {kind}, and only text is read", "remove the row")
    return "".join(part["text"] for part in content)


def _calls(calls: object, place: str, number: int) -> list[dict[str, Any]]:
    """Calls as templates expect them: arguments as an object, also where a row has them as JSON."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UserError(
            place, f"{CALLS!r} of message {number} is {kind_of(calls)}, not a list of objects", "correct it"
        )
    parsed = []
    for call in calls:
        function = call.get("function")
        inner = function if isinstance(function, dict) else call
        if not isinstance(inner.get("name"), str):
            raise UserError(place, f"a call in message {number} names no function", 'write {"function": {"name": …}}')
        if isinstance(inner.get("arguments"), str) and isinstance(own := _from_json(inner["arguments"]), dict):
            inner = {**inner, "arguments": own}
        parsed.append({**call, "function": inner} if isinstance(function, dict) else inner)
    return parsed


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _sharegpt_role(speaker: Any, place: str, number: int) -> str:
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        known = ", ".join(SHAREGPT_ROLES)
        raise UserError(place, f"message {number} is from {speaker!r}", f"use one of {known}")
    return SHAREGPT_ROLES[speaker]
