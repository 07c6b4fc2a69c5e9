"""What a row means: text, chat or hh.

text   the prompt column holds the prompt.
chat   the prompt column holds messages, a list of {role, content} ending with the user's; a plain string counts as
       one user message when data.format=chat asks for it. Of each message only role and content are used.
hh     `chosen` holds a dialogue "\\n\\nHuman: ...\\n\\nAssistant: ...": the prompt is everything up to and including
       its last "\\n\\nAssistant:". The prompt column plays no part.
auto   when the prompt column exists, its first value that is not null decides: a string means text, a list chat.
       Without that column, `chosen` and `rejected` strings that hold "\\n\\nAssistant:" mean hh. Anything else is an
       error.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from apa_cli.data.table import Table, kind_of
from apa_cli.errors import UserError

ASSISTANT = "\n\nAssistant:"
ROLES = ("system", "developer", "user", "assistant", "tool")
USUAL_COLUMNS = ("prompt", "messages", "text", "question", "instruction", "query", "conversations")


@dataclass(frozen=True, kw_only=True)
class Row:
    text: str
    messages: tuple[dict[str, str], ...] | None
    columns: dict[str, Any]
    place: str  # for errors


def parse_rows(table: Table, *, format: str, prompt_column: str) -> tuple[str, list[Row]]:
    """The format ("text", "chat" or "hh") and what each row says. Raises UserError, naming the row."""
    names = table.columns()
    if format == "auto":
        format = _decide_format(table, names, prompt_column)
    column = "chosen" if format == "hh" else prompt_column
    if column not in names:
        if format == "hh":
            raise UserError(table.source, f"has no column 'chosen' ({_listing(names)})", "choose another data.format")
        raise _missing_column(table, names, column)
    others = names if format == "hh" else [name for name in names if name != column]
    rows = []
    for index, values in enumerate(table.rows):
        place = table.place(index)
        if column not in values:
            raise UserError(place, f"has no {column!r}", "give every row this column")
        text, messages = _PARSERS[format](values[column], place, column)
        columns = {name: values.get(name) for name in others}
        rows.append(Row(text=text, messages=messages, columns=columns, place=place))
    return format, rows


def _decide_format(table: Table, names: list[str], prompt_column: str) -> str:
    if prompt_column in names:
        values = ((index, row.get(prompt_column)) for index, row in enumerate(table.rows))
        index, first = next(((i, value) for i, value in values if value is not None), (0, None))
        if isinstance(first, (str, list)):
            return "text" if isinstance(first, str) else "chat"
        problem = f"{prompt_column!r} is {kind_of(first)}, neither text nor messages"
        raise UserError(table.place(index), problem, "set data.prompt_column or data.format")
    dialogues = [table.rows[0].get("chosen"), table.rows[0].get("rejected")]
    if all(isinstance(dialogue, str) and ASSISTANT in dialogue for dialogue in dialogues):
        return "hh"
    raise _missing_column(table, names, prompt_column)


def _missing_column(table: Table, names: list[str], column: str) -> UserError:
    nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    nearest = nearest or [name for name in USUAL_COLUMNS if name in names]
    remedy = f"set data.prompt_column={nearest[0]}" if nearest else "set data.prompt_column"
    return UserError(table.source, f"has no column {column!r} ({_listing(names)})", remedy)


def _listing(names: list[str]) -> str:
    if not names:
        return "it has no columns"
    return f"it has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _check_text(value: object, place: str, what: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise UserError(place, f"{what} is {kind_of(value)}, not a string", "correct it, or remove the row")
    if not empty and not value.strip():
        raise UserError(place, f"{what} is empty", "fill it in, or remove the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{what} holds half a surrogate pair (character {error.start + 1})"
        raise UserError(place, problem, "write the character whole") from None
    return value


_Parsed = tuple[str, "tuple[dict[str, str], ...] | None"]


def _parse_text(value: object, place: str, column: str) -> _Parsed:
    if isinstance(value, list):
        raise UserError(place, f"{column!r} is a list, not a string", "for messages set data.format=chat")
    return _check_text(value, place, repr(column)), None


def _parse_hh(value: object, place: str, column: str) -> _Parsed:
    dialogue = _check_text(value, place, repr(column))
    end = dialogue.rfind(ASSISTANT)
    if end < 0:
        raise UserError(place, f"{column!r} has no '\\n\\nAssistant:'", "correct it, or choose another data.format")
    return dialogue[: end + len(ASSISTANT)], None


def _parse_chat(value: object, place: str, column: str) -> _Parsed:
    if isinstance(value, str):
        if value.lstrip().startswith(("[{", "{'role'", '{"role"')):
            problem = f"{column!r} is a string that holds messages"
            raise UserError(place, problem, "store them as a list, in .jsonl or .parquet")
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise UserError(place, f"{column!r} is {kind_of(value)}, not a list of messages", "correct or remove it")
    if not value:
        raise UserError(place, f"{column!r} has no messages", "fill it in, or remove the row")
    messages = tuple(_parse_message(message, place, number) for number, message in enumerate(value, start=1))
    last = messages[-1]
    if last["role"] != "user":
        problem = f"the last message is from {last['role']!r}, not from the user"
        raise UserError(place, problem, "end the prompt with a user message")
    _check_text(last["content"], place, f"message {len(messages)}")
    if len(messages) == 1:
        return last["content"], messages
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages), messages


def _parse_message(message: object, place: str, number: int) -> dict[str, str]:
    shape = 'write each as {"role": "user", "content": "..."}'
    if not isinstance(message, dict):
        raise UserError(place, f"message {number} is {kind_of(message)}, not an object", shape)
    for name in ("role", "content"):
        if name not in message:
            raise UserError(place, f"message {number} has no {name!r} ({_listing(list(message))})", shape)
    if message["role"] not in ROLES:
        raise UserError(place, f"message {number} has the role {message['role']!r}", f"use one of {', '.join(ROLES)}")
    content = _check_text(message["content"], place, f"the content of message {number}", empty=True)
    return {"role": message["role"], "content": content}


_PARSERS = {"text": _parse_text, "chat": _parse_chat, "hh": _parse_hh}
