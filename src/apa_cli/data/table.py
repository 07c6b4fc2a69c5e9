"""Rows as they were read, each with the label a user finds it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apa_cli.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Table:
    source: str  # file or data set, as the user named it
    rows: list[dict[str, Any]]
    labels: list[str]  # "line 7" of a file, "row 7", "entry 7" of an array; counted from 1
    commit: str | None = None  # of a data set on the Hub, where it is known

    def place(self, index: int) -> str:
        """Name one row in an error."""
        return f"{self.source}, {self.labels[index]}"

    def columns(self) -> list[str]:
        """Every column that any row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def kind_of(value: object) -> str:
    """What a value is, in a user's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    for kind, words in ((str, "a string"), (list, "a list"), (dict, "an object")):
        if isinstance(value, kind):
            return words
    return f"of type {type(value).__name__}"


def listing(names: list[str]) -> str:
    if not names:
        return "it has no columns"
    return f"it has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def check_text(value: object, place: str, what: str, *, empty: bool = False) -> str:
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
