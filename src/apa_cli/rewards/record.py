"""What rewards read and return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from apa_cli.data.messages import Message
from apa_cli.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FinishedResponses:
    """The input of rewards, one entry per response."""

    prompts: list[str]
    responses: list[str]
    messages: list[list[Message]] | None  # prompts as chats, if the data has them
    columns: dict[str, list[Any]]  # the data set's other columns, by name
    token_ids: list[list[int]]  # prompt and response, without the token or string that ended it
    prompt_lengths: Sequence[int] = ()  # () = unknown
    ended: Sequence[bool] = ()  # False = cut at max_new_tokens; () = none
    response_ids: Sequence[list[int]] = ()  # with the token or string that ended it
    raw: Callable[[], tuple[list[str], list[str]]] = lambda: ([], [])  # prompts and responses with special tokens
    closing: int | None = None  # the policy's token that ends a complete response
    torn: Sequence[bool] = ()  # prompts cut on the left, inside a turn; () = none

    def closed_ids(self, closes: Sequence[bool]) -> list[list[int]]:
        """`token_ids`, with the closing token after responses for which `closes` is True."""
        end = [] if self.closing is None else [self.closing]
        return [[*ids, *end] if close else ids for ids, close in zip(self.token_ids, closes, strict=True)]


def whole_texts(finished: FinishedResponses) -> list[str]:
    """Prompt and response in one text."""
    between = "" if finished.messages is None else "\n\n"  # a chat's prompt is a complete message
    return [p + between + r for p, r in zip(finished.prompts, finished.responses, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of B responses, of several rewards what each of them gave, without its weight, and what was counted."""

    scores: list[float]
    parts: dict[str, list[float]] = field(default_factory=dict)  # by component or count; {} of most single rewards

    def parts_of(self, row: int) -> dict[str, float]:
        return {name: scores[row] for name, scores in self.parts.items()}


class Scorer(Protocol):
    def __call__(self, finished: FinishedResponses) -> list[float]:
        """One score per response, perhaps NaN or infinite."""

    def not_finite(self, row: int, score: float) -> UserError:
        """The error for such a score."""
