"""Dialogues as lists of messages: read from a row, shortened by whole turns, written for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apa_cli.data.table import check_text, kind_of, listing
from apa_cli.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM = ("system", "developer")
SHAREGPT_ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
}

Messages = tuple[dict[str, str], ...]


def read_messages(value: object, place: str, column: str) -> tuple[Messages, str | None]:
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
        raise UserError(place, f"{column!r} is {kind_of(value)}, not a list of messages", "correct or remove it")
    if not value:
        raise UserError(place, f"{column!r} has no messages", "fill it in, or remove the row")
    return open_turn(each_message(value, place), place)


def each_message(value: Sequence[object], place: str) -> Messages:
    """Raises UserError for what is no message."""
    return tuple(_message(message, place, number) for number, message in enumerate(value, start=1))


def open_turn(messages: Messages, place: str) -> tuple[Messages, str | None]:
    """The dialogue up to the user's last word, and the answer to it where there is one. Raises UserError."""
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    if answer is not None:
        messages = messages[:-1]
    if not messages:
        raise UserError(place, "there is no message before the assistant's", "begin with a user message")
    last = messages[-1]
    if last["role"] != "user":
        problem = f"the last message is from {last['role']!r}, not from the user"
        if answer is not None:
            problem = f"the message before the answer is from {last['role']!r}, not from the user"
        raise UserError(place, problem, "end the prompt with a user message")
    check_text(last["content"], place, f"message {len(messages)}")
    return messages, answer


def with_system(messages: Messages, system_prompt: str | None) -> Messages:
    """`system_prompt` in front, where the dialogue has no system message of its own."""
    if system_prompt is None or any(message["role"] in SYSTEM for message in messages):
        return messages
    return ({"role": "system", "content": system_prompt}, *messages)


def without_oldest_turn(messages: Sequence[dict[str, str]]) -> Messages | None:
    """The system message, and the dialogue from its second user message on; None where it has one alone."""
    start = next((i for i, message in enumerate(messages) if message["role"] not in SYSTEM), len(messages))
    later = [i for i, message in enumerate(messages) if i > start and message["role"] == "user"]
    return (*messages[:start], *messages[later[0] :]) if later else None


def as_text(messages: Sequence[dict[str, str]]) -> str:
    """What people and reward functions read: one message as it is, of several each after its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _message(message: object, place: str, number: int) -> dict[str, str]:
    shape = 'write each as {"role": "user", "content": "..."}'
    if not isinstance(message, dict):
        raise UserError(place, f"message {number} is {kind_of(message)}, not an object", shape)
    if "role" not in message and {"from", "value"} <= message.keys():
        role, content = _sharegpt_role(message["from"], place, number), message["value"]
    else:
        for name in ("role", "content"):
            if name not in message:
                raise UserError(place, f"message {number} has no {name!r} ({listing(list(message))})", shape)
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UserError(place, f"message {number} has the role {role!r}", f"use one of {', '.join(ROLES)}")
    return {"role": role, "content": check_text(content, place, f"the content of message {number}", empty=True)}


def _sharegpt_role(speaker: Any, place: str, number: int) -> str:
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        known = ", ".join(SHAREGPT_ROLES)
        raise UserError(place, f"message {number} is from {speaker!r}", f"use one of {known}")
    return SHAREGPT_ROLES[speaker]
