"""What the rows of a data set mean: text, chat, hh or hh_chat.

text     the prompt column contains the prompt.
chat     the prompt column contains messages, a list of {role, content} or ShareGPT's {from, value}; with
         data.format=chat a plain string is one user message. An assistant's message at the end is the answer, not part
         of the prompt. The template receives all fields of a message (tool_calls, name, ...) and a column `tools`. A
         string in a column `system`, or else data.system_prompt, is the system message of dialogues without one.
hh       `chosen` contains a dialogue "\\n\\nHuman: ...\\n\\nAssistant: ...": the prompt is everything up to and
         including its last "\\n\\nAssistant:". The prompt column is not used.
hh_chat  the turns of the same dialogue as messages.
auto     the first non-null value of the prompt column decides: a string means text, a list chat. Without that column,
         lists in `messages` or `conversations` mean chat, and strings in `chosen` and `rejected` that contain
         "\\n\\nAssistant:" mean hh. Anything else is an error.
"""

from __future__ import annotations

import difflib
from typing import Any

from apa_cli.data.messages import (
    ASSISTANT,
    SYSTEM,
    TOOLS,
    as_text,
    hh_messages,
    open_turn,
    read_messages,
    read_tools,
)
from apa_cli.data.prompts import Prompt
from apa_cli.data.table import EmptyError, Findings, Table, check_text, kind_of, listing, without_nulls
from apa_cli.errors import UserError

CHAT_COLUMNS = ("messages", "conversations", "conversation")  # tried if data.prompt_column has its default
USUAL_COLUMNS = ("prompt", "messages", "text", "question", "instruction", "query", "conversations")


def parse_rows(
    table: Table,
    *,
    format: str,
    prompt_column: str,
    system_prompt: str | None = None,
    prompt_template: str | None = None,
    dropped: Findings | None = None,
) -> tuple[str, list[Prompt]]:
    """The format ("text", "chat", "hh" or "hh_chat") and the prompts, not yet tokenized.

    Raises UserError, naming the row. With `dropped`, rows whose prompt is null or empty are counted there and left out.
    """
    names = table.columns()
    if format in ("auto", "chat"):
        prompt_column = _chat_column(table, names, prompt_column)
    if format == "auto":
        format = _decide_format(table, names, prompt_column)
    chat, hh = format in ("chat", "hh_chat"), format in ("hh", "hh_chat")
    if system_prompt is not None and not chat:
        what = "dialogues" if hh else "plain text"
        problem = f"set, but {table.source} holds {what}, and data.format={format} uses no template"
        raise UserError("data.system_prompt", problem, f"add data.format={'hh_chat' if hh else 'chat'}, or unset it")
    if prompt_template is not None and format != "text":
        problem = f"set, but {table.source} holds {'dialogues' if hh else 'messages'}, and it is for plain text"
        raise UserError("data.prompt_template", problem, "unset it, or add data.format=text")
    column = "chosen" if hh else prompt_column
    if column not in names:
        if hh:
            raise UserError(table.source, f"has no column 'chosen' ({listing(names)})", "choose another data.format")
        raise _missing_column(table, names, column)
    others = names if hh else [name for name in names if name != column]

    def parse(row: dict[str, Any], place: str) -> Prompt:
        if column not in row:
            raise EmptyError(place, f"has no {column!r}", "give every row this column")
        columns = {name: row.get(name) for name in others}
        value = row[column]
        if not chat:
            text = _hh_prompt(value, place) if hh else _text(value, place, column)
            text = text if prompt_template is None else prompt_template.replace("{prompt}", text)
            return Prompt(text=text, columns=columns, place=place)
        if hh:
            dialogue = tuple(hh_messages(_hh_prompt(value, place)))
            messages, answer = open_turn(dialogue, place) if dialogue else read_messages([], place, column)
        else:
            messages, answer = read_messages(without_nulls(value) if table.padded else value, place, column)
        if TOOLS in columns:
            columns[TOOLS] = read_tools(without_nulls(columns[TOOLS]) if table.padded else columns[TOOLS], place)
        own = row.get("system")  # a column of ShareGPT's and Orca's data sets
        system = own if isinstance(own, str) and own.strip() else system_prompt
        if system is not None and not any(message["role"] in SYSTEM for message in messages):
            messages = ({"role": "system", "content": system}, *messages)
        return Prompt(text=as_text(messages), messages=messages, columns=columns, place=place, answer=answer)

    prompts = []
    for index, row in enumerate(table.rows):
        try:
            prompts.append(parse(row, table.places[index]))
        except EmptyError as error:
            if dropped is None:
                raise
            dropped.add("null or empty prompts are left out", error.where)
    if not prompts:
        raise UserError(table.source, "every prompt is null or empty", "correct the rows, or set data.prompt_column")
    return format, prompts


def _chat_column(table: Table, names: list[str], prompt_column: str) -> str:
    """The column with the messages: `prompt_column`, or another usual name if that is the default and missing."""
    if prompt_column not in names and prompt_column == "prompt":
        for name in CHAT_COLUMNS:
            if isinstance(next((row[name] for row in table.rows if row.get(name) is not None), None), list):
                return name
    return prompt_column


def _decide_format(table: Table, names: list[str], prompt_column: str) -> str:
    if prompt_column in names:
        values = ((index, row.get(prompt_column)) for index, row in enumerate(table.rows))
        index, first = next(((i, value) for i, value in values if value is not None), (0, None))
        if isinstance(first, (str, list)):
            return "text" if isinstance(first, str) else "chat"
        problem = f"{prompt_column!r} is {kind_of(first)}, neither text nor messages"
        raise UserError(table.places[index], problem, "set data.prompt_column or data.format")
    pairs = ((row.get("chosen"), row.get("rejected")) for row in table.rows)
    pair = next((pair for pair in pairs if all(pair)), ())
    if pair and all(isinstance(dialogue, str) and ASSISTANT in dialogue for dialogue in pair):
        return "hh"
    raise _missing_column(table, names, prompt_column)


def _missing_column(table: Table, names: list[str], column: str) -> UserError:
    nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    nearest = nearest or [name for name in USUAL_COLUMNS if name in names]
    remedy = f"set data.prompt_column={nearest[0]}" if nearest else "set data.prompt_column"
    return UserError(table.source, f"has no column {column!r} ({listing(names)})", remedy)


def _text(value: object, place: str, column: str) -> str:
    if isinstance(value, list):
        raise UserError(place, f"{column!r} is a list, not a string", "for messages set data.format=chat")
    return check_text(value, place, repr(column))


def _hh_prompt(value: object, place: str) -> str:
    before, mark, _ = check_text(value, place, "'chosen'").rpartition(ASSISTANT)
    if not mark:
        raise UserError(place, "'chosen' has no '\\n\\nAssistant:'", "correct it, or choose another data.format")
    return before + mark
