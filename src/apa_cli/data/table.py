"""Rows as they were read, each with the label a user finds it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
