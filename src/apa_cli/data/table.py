"""Rows as they were read, each with the label a user finds it by."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from apa_cli.errors import UserError

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]  # what is being done, how many of how many; of 0 where that is not known
EVERY = 100  # rows between two words to it


def told(what: str, items: Iterable[Item], progress: Progress | None, total: int = 0) -> Iterator[Item]:
    """The items, while `progress` hears how many have been taken."""
    for count, item in enumerate(items):
        if progress is not None and count % EVERY == 0:
            progress(what, count, total)
        yield item


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How many rows of a data set are read: all, or `most` of a larger one, chosen by `seed`, in their order."""

    most: int | None = None
    seed: int = 0
    progress: Progress | None = None

    def places(self, count: int) -> Sequence[int]:
        """Of rows that can be read by number."""
        if self.most is None or count <= self.most:
            return range(count)
        return sorted(random.Random(f"rows/{self.seed}").sample(range(count), self.most))

    def of(self, stream: Iterable[Item]) -> tuple[list[Item], int]:
        """Of rows that come one by one, and how many came: the reservoir of Vitter's algorithm R."""
        chance, kept, count = random.Random(f"rows/{self.seed}"), [], 0
        for count, item in enumerate(told("read", stream, self.progress), start=1):
            if self.most is None or count <= self.most:
                kept.append((count, item))
            elif (place := chance.randrange(count)) < self.most:
                kept[place] = count, item
        return [item for _, item in sorted(kept, key=lambda pair: pair[0])], count


@dataclass(frozen=True, kw_only=True)
class Table:
    source: str  # file or data set, as the user named it
    rows: list[dict[str, Any]]
    labels: list[str]  # "line 7" of a file, "row 7", "entry 7" of an array; counted from 1
    several: bool = False  # files, each of which is named in its labels
    commit: str | None = None  # of a data set on the Hub, where it is known
    count: int | None = None  # rows of the data set, where only some were read
    padded: bool = False  # records of unlike fields share all of them, filled up with nulls, as Arrow has it

    def place(self, index: int) -> str:
        """Name one row in an error."""
        return self.labels[index] if self.several else f"{self.source}, {self.labels[index]}"

    def columns(self) -> list[str]:
        """Every column that any row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


class EmptyError(UserError):
    """Of a prompt or a response that is null, empty or not there: data.empty=drop leaves it out."""


class Findings:
    """What rows turned out to hold, counted by kind, each with where it was first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, place: str) -> None:
        count, first = self._found.get(what, (0, place))
        self._found[what] = count + 1, first

    def count(self, what: str) -> int:
        return self._found.get(what, (0, ""))[0]

    def lines(self) -> list[str]:
        return [
            f"{what}: {count:,} prompt{'s' if count > 1 else ''}, the first {first}"
            for what, (count, first) in self._found.items()
        ]


def without_nulls(value: Any) -> Any:
    """Records inside a value, without the fields that are null."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


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
        kind = UserError if value is not None else EmptyError
        raise kind(place, f"{what} is {kind_of(value)}, not a string", "correct it, or remove the row")
    if not empty and not value.strip():
        raise EmptyError(place, f"{what} is empty", "fill it in, or remove the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{what} holds half a surrogate pair (character {error.start + 1})"
        raise UserError(place, problem, "write the character whole") from None
    return value
