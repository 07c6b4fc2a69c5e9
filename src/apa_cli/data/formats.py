"""What a row means: text, chat, hh or hh_chat.

text     the prompt column holds the prompt.
chat     the prompt column holds messages, a list of {role, content} or ShareGPT's {from, value}; a plain string counts
         as one user message when data.format=chat asks for it. An assistant's message at the end is the answer, and
         no part of the prompt. Messages go to the template with all their fields (tool_calls, name, ...), and a column
         `tools` with them. A string in a column `system`, otherwise data.system_prompt, is the system message of
         dialogues that have none.
hh       `chosen` holds a dialogue "\\n\\nHuman: ...\\n\\nAssistant: ...": the prompt is everything up to and including
         its last "\\n\\nAssistant:". The prompt column plays no part.
hh_chat  the same dialogue, its turns as messages.
auto     when the prompt column exists, its first value that is not null decides: a string means text, a list chat.
         Without that column, `messages` or `conversations` that hold lists mean chat, and `chosen` and `rejected`
         strings that hold "\\n\\nAssistant:" hh. Anything else is an error.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from apa_cli.data.dialogues import hh_messages
from apa_cli.data.messages import (
    TOOLS,
    Message,
    Messages,
    as_text,
    open_turn,
    read_messages,
    read_tools,
    with_system,
)
from apa_cli.data.table import EmptyError, Findings, Table, check_text, kind_of, listing, without_nulls
from apa_cli.errors import UserError

ASSISTANT = "\n\nAssistant:"
CHAT_COLUMNS = ("messages", "conversations", "conversation")  # looked into where data.prompt_column is left as it is
USUAL_COLUMNS = ("prompt", "messages", "text", "question", "instruction", "query", "conversations")


@dataclass(frozen=True, kw_only=True)
class Row:
    text: str
    messages: Messages | None
    columns: dict[str, Any]
    place: str  # for errors
    answer: Message | None = None  # an assistant's message at its end, which is not among `messages`


def parse_rows(
    table: Table,
    *,
    format: str,
    prompt_column: str,
    system_prompt: str | None = None,
    prompt_template: str | None = None,
    dropped: Findings | None = None,
) -> tuple[str, list[Row]]:
    """The format ("text", "chat", "hh" or "hh_chat") and what each row says. Raises UserError, naming the row.

    Rows whose prompt is null or empty are refused, or left out and counted in `dropped` where that is given.
    """
    names = table.columns()
    if format in ("auto", "chat"):
        prompt_column = _chat_column(table, names, prompt_column)
    if format == "auto":
        format = _decide_format(table, names, prompt_column)
    chat, hh = format in ("chat", "hh_chat"), format in ("hh", "hh_chat")
    if system_prompt is not None and not chat:
        what = "dialogues" if hh else "plain text"
        raise UserError(
            "data.system_prompt",
            f"set, but {table.source} holds {what}, and data.format={format} uses no template",
            f"add data.format={'hh_chat' if hh else 'chat'}, or unset it",
        )
    if prompt_template is not None and format != "text":
        problem = f"set, but {table.source} holds {'dialogues' if hh else 'messages'}, and it is for plain text"
        raise UserError("data.prompt_template", problem, "unset it, or add data.format=text")
    column = "chosen" if hh else prompt_column
    if column not in names:
        if hh:
            raise UserError(table.source, f"has no column 'chosen' ({listing(names)})", "choose another data.format")
        raise _missing_column(table, names, column)
    others = names if hh else [name for name in names if name != column]

    without_gaps = without_nulls if table.padded else lambda value: value

    def parse(values: dict[str, Any], place: str) -> Row:
        if column not in values:
            raise EmptyError(place, f"has no {column!r}", "give every row this column")
        columns = {name: values.get(name) for name in others}
        if not chat:
            text = _PARSERS[format](values[column], place, column)
            if prompt_template is not None:
                text = prompt_template.replace("{prompt}", text)
            return Row(text=text, messages=None, columns=columns, place=place)
        if hh:
            dialogue = tuple(hh_messages(_parse_hh(values[column], place, column)))
            messages, answer = open_turn(dialogue, place) if dialogue else read_messages([], place, column)
        else:
            messages, answer = read_messages(without_gaps(values[column]), place, column)
        if TOOLS in columns:
            columns[TOOLS] = read_tools(without_gaps(columns[TOOLS]), place)
        own = values.get("system")  # beside the dialogue, as ShareGPT's and Orca's rows have it
        messages = with_system(messages, own if isinstance(own, str) and own.strip() else system_prompt)
        return Row(text=as_text(messages), messages=messages, columns=columns, place=place, answer=answer)

    rows = []
    for index, values in enumerate(table.rows):
        try:
            rows.append(parse(values, table.place(index)))
        except EmptyError as error:
            if dropped is None:
                raise
            dropped.add("null or empty prompts are left out", error.where)
    if not rows:
        raise UserError(table.source, "every prompt is null or empty", "correct the rows, or set data.prompt_column")
    return format, rows


def _chat_column(table: Table, names: list[str], prompt_column: str) -> str:
    """The column with the messages, where the data has it under another usual name and none of the default one."""
    if prompt_column not in names and prompt_column == "prompt":
        for name in CHAT_COLUMNS:
            first = next((row[name] for row in table.rows if row.get(name) is not None), None)
            if isinstance(first, list):
                return name
    return prompt_column


def _decide_format(table: Table, names: list[str], prompt_column: str) -> str:
    if prompt_column in names:
        values = ((index, row.get(prompt_column)) for index, row in enumerate(table.rows))
        index, first = next(((i, value) for i, value in values if value is not None), (0, None))
        if isinstance(first, (str, list)):
            return "text" if isinstance(first, str) else "chat"
        problem = f"{prompt_column!r} is {kind_of(first)}, neither text nor messages"
        raise UserError(table.place(index), problem, "set data.prompt_column or data.format")
    pairs = ((row.get("chosen"), row.get("rejected")) for row in table.rows)
    first = next((pair for pair in pairs if all(pair)), ())
    if first and all(isinstance(dialogue, str) and ASSISTANT in dialogue for dialogue in first):
        return "hh"
    raise _missing_column(table, names, prompt_column)


def _missing_column(table: Table, names: list[str], column: str) -> UserError:
    nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    nearest = nearest or [name for name in USUAL_COLUMNS if name in names]
    remedy = f"set data.prompt_column={nearest[0]}" if nearest else "set data.prompt_column"
    return UserError(table.source, f"has no column {column!r} ({listing(names)})", remedy)


def _parse_text(value: object, place: str, column: str) -> str:
    if isinstance(value, list):
        raise UserError(place, f"{column!r} is a list, not a string", "for messages set data.format=chat")
    return check_text(value, place, repr(column))


def _parse_hh(value: object, place: str, column: str) -> str:
    dialogue = check_text(value, place, repr(column))
    end = dialogue.rfind(ASSISTANT)
    if end < 0:
        raise UserError(place, f"{column!r} has no '\\n\\nAssistant:'", "correct it, or choose another data.format")
    return dialogue[: end + len(ASSISTANT)]


_PARSERS = {"text": _parse_text, "hh": _parse_hh}
