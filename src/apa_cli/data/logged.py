"""Logged responses: rows of a data set that contain answers, as if the policy had just given them.

pairs      `chosen` and `rejected` are two answers. With hh and hh_chat they are whole dialogues, and the answer is what
           follows the prompt.
response   without such a pair, or with `data.response_column`, that column contains the answer.
chat       an answer is text, a list with one assistant message, or the whole dialogue that ends with it. Without any of
           these columns, it is the assistant's message at the end of the prompt's own dialogue.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apa_cli.config.schema import TrainConfig
from apa_cli.data.messages import ASSISTANT, CALLS, SYSTEM, TOOLS, Message, each_message
from apa_cli.data.prompts import LoggedResponse, Prompt, PromptSet
from apa_cli.data.table import EmptyError, Progress, check_text, kind_of
from apa_cli.data.template import Template
from apa_cli.data.tokenization import tokens_after
from apa_cli.errors import UserError

PAIR = ("chosen", "rejected")
IN_DIALOGUE = (None,)  # no column: the answer ends the prompt's messages


@dataclass(frozen=True, kw_only=True)
class ResponseEncoder:
    """Token ids that the policy would have sampled, at most `max_new_tokens` each, and whether each ended by then.

    A response ends with its first stop string or at EOS. A complete response without either gets an end, from which the
    policy learns to stop: `closing`, or in a chat `closing_turn`, the token with which the template closes the turn.
    """

    template: Template
    eos_token_ids: Collection[int]
    closing: int | None
    closing_turn: int | None
    stop: Sequence[str]
    max_new_tokens: int
    progress: Progress | None = None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[list[int], bool]]:
        texts: list[str] = []
        ends: list[int | None] = []
        for prompt, response in zip(prompts, responses, strict=True):
            stops = [start + len(stop) for stop in self.stop if (start := response.find(stop)) >= 0]
            chat = prompt.messages is not None
            texts.append(response[: min(stops)] if stops else self._turn(prompt, response) if chat else response)
            ends.append(None if stops else self.closing_turn if chat else self.closing)
        contexts = ["" if prompt.messages is not None else prompt.text for prompt in prompts]
        ids = tokens_after(self.template.tokenizer, contexts, texts, self.progress)
        return [self._close(row, end) for row, end in zip(ids, ends, strict=True)]

    def _turn(self, prompt: Prompt, response: str) -> str:
        """What the chat template writes after the prompt: the response and the end of the turn."""
        messages, tools = prompt.messages or (), prompt.columns.get(TOOLS)
        asked, answer = self.template.render(messages, tools), {"role": "assistant", "content": response}
        try:
            whole = self.template.render([*messages, answer], tools, add_generation_prompt=False)
        except Exception:  # a template may fail in any way; it accepted the prompt alone
            return response
        return whole.removeprefix(asked) if whole.startswith(asked) else response

    def _close(self, ids: list[int], closing: int | None) -> tuple[list[int], bool]:
        end = next((place for place, token in enumerate(ids) if token in self.eos_token_ids), None)
        ids = ids[: end + 1] if end is not None else ids if closing is None else [*ids, closing]
        return ids[: self.max_new_tokens], len(ids) <= self.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class LoggedSet:
    rows: list[Prompt]  # with their logged response
    source: PromptSet
    prompts: int  # distinct ones
    cut: int  # responses longer than generation.max_new_tokens
    astray: int  # responses left out because they continue another dialogue
    empty: tuple[str, ...]  # places of null or empty responses, left out with data.empty=drop

    def describe(self) -> str:
        """One line for the log."""
        lengths = [len(row.logged.token_ids) for row in self.rows if row.logged is not None]
        notes = [f"{min(lengths):,} to {max(lengths):,} tokens"]
        if self.cut:
            notes.append(f"{self.cut:,} cut at generation.max_new_tokens")
        if self.astray:
            notes.append(f"{self.astray:,} left out that continue another dialogue")
        if self.empty:
            notes.append(f"{len(self.empty):,} left out as null or empty (the first: {self.empty[0]})")
        if self.source.notes:
            notes.append(f"of the prompts {', '.join(self.source.notes)}")
        place = self.source.source
        return f"{len(self.rows):,} logged responses to {self.prompts:,} prompts from {place}: {', '.join(notes)}"


def load_logged(prompts: PromptSet, config: TrainConfig, encoder: ResponseEncoder) -> LoggedSet:
    """The logged responses to `prompts`. Raises UserError, naming the row, if one is missing."""
    names, score_column = _response_names(prompts, config), config.data.score_column
    found: list[tuple[Prompt, str, float | None]] = []
    astray, empty = 0, []
    for prompt in prompts.prompts:
        for name in names:
            text: str | None = ""
            try:
                text = _response(prompt, name, whole=prompts.format in ("hh", "hh_chat") and name in PAIR)
            except EmptyError:
                if config.data.empty == "stop":
                    raise
            if text is None:
                astray += 1
            elif config.data.empty == "drop" and not text.strip():
                empty.append(prompt.place)
            else:
                scored = f"{score_column}_{name}" if score_column and names == PAIR else score_column
                found.append((prompt, text, None if scored is None else _score(prompt, scored)))
    if not found:
        raise UserError(prompts.source, "no response continues its prompt", "correct the rows, or data.format")
    encoded = encoder([prompt for prompt, _, _ in found], [text for _, text, _ in found])
    rows = []
    for index, ((prompt, _, score), (ids, ended)) in enumerate(zip(found, encoded, strict=True)):
        if not ids:
            raise UserError(prompt.place, "the tokenizer makes no tokens of its response", "remove the row")
        logged = LoggedResponse(index=index, token_ids=tuple(ids), ended=ended, score=score)
        rows.append(replace(prompt, logged=logged))
    return LoggedSet(
        rows=rows,
        source=prompts,
        prompts=len({row.token_ids for row in rows}),
        cut=sum(not ended for _, ended in encoded),
        astray=astray,
        empty=tuple(empty),
    )


def _response_names(prompts: PromptSet, config: TrainConfig) -> tuple[str | None, ...]:
    """The columns with the responses. Raises UserError if they or those of the scores are missing."""
    names = dict.fromkeys(name for prompt in prompts.prompts for name in prompt.columns)
    column, score = config.data.response_column, config.data.score_column
    chat = column is None and prompts.format == "chat"
    found: tuple[str | None, ...] = (column or "response",)
    if column is None and all(name in names for name in PAIR):
        found = PAIR
    elif found[0] not in names and chat and prompts.answered:
        found = IN_DIALOGUE
    elif found[0] not in names:
        wanted = f"no column {column!r}" if column else "neither 'chosen' and 'rejected' nor 'response'"
        problem = f"has {wanted} beside the prompt (it has {', '.join(list(names)[:8]) or 'nothing'})"
        problem += ", and no messages that end with the assistant's" if chat else ""
        raise UserError(prompts.source, problem, "set data.response_column, or rollout.source=online")
    for name in [] if score is None else [f"{score}_{name}" for name in PAIR] if found == PAIR else [score]:
        if name not in names:
            remedy = "set data.score_column, or null for the reward's scores"
            raise UserError(prompts.source, f"has no column {name!r}, of data.score_column={score}", remedy)
    return found


def _score(prompt: Prompt, name: str) -> float:
    value: Any = prompt.columns.get(name)
    score = math.nan
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number or isinstance(value, str):  # as every value of a CSV file
        with contextlib.suppress(ValueError, OverflowError):
            score = float(value)
    if not math.isfinite(score):
        problem = "is not finite" if number else f"is {kind_of(value)}, not a number"
        raise UserError(prompt.place, f"{name!r} {problem}", "correct it, or remove the row")
    return score


def _response(prompt: Prompt, name: str | None, *, whole: bool) -> str | None:
    """The answer in column `name`, the last turn of a `whole` dialogue; None if it continues another dialogue."""
    if name is None:
        if prompt.answer is None:
            problem = "its messages end without the assistant's answer, and those of other rows with one"
            raise UserError(prompt.place, problem, "add it, or remove the row")
        return _content(prompt.answer, prompt.place)
    value = prompt.columns.get(name)
    if isinstance(value, list):
        return _last_message(prompt, name, value)
    value = check_text(value, prompt.place, repr(name), empty=True)
    if not whole:
        return value
    chosen = str(prompt.columns[PAIR[0]])
    asked = chosen[: chosen.rfind(ASSISTANT) + len(ASSISTANT)]  # all of it, even if the prompt was cut
    answer = value.removeprefix(asked)
    if not value.startswith(asked) or ASSISTANT in answer:
        return None
    return answer if prompt.messages is None else answer.strip()  # stripped like the other turns of hh_chat


def _last_message(prompt: Prompt, name: str, messages: Sequence[Any]) -> str | None:
    if prompt.messages is None:
        problem = f"{name!r} is a list of messages, and the prompt is text"
        raise UserError(prompt.place, problem, "set data.format=chat")
    if not messages:
        raise EmptyError(prompt.place, f"{name!r} has no messages", "fill it in, or remove the row")
    *before, last = each_message(messages, prompt.place)
    if last["role"] != "assistant":
        problem = f"the last message of {name!r} is from {last['role']!r}, not from the assistant"
        raise UserError(prompt.place, problem, "end it with the response")
    # the prompt may be only the end of this dialogue, or have a system message of its own
    turns, asked = (
        [(m["role"], m["content"], m.get(CALLS)) for m in part if m["role"] not in SYSTEM]
        for part in (before, prompt.messages)
    )
    return _content(last, prompt.place) if not turns or turns[len(turns) - len(asked) :] == asked else None


def _content(answer: Message, place: str) -> str:
    if unread := [name for name in (CALLS, "reasoning_content") if answer.get(name)]:
        problem = f"the response holds {unread[0]!r}, and of a logged response only the content is learnt from"
        raise UserError(place, problem, "write it into the content, as the policy would, or remove the row")
    return str(answer["content"])
