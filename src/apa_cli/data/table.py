"""The rows of a data set as stored, with the labels, warnings and errors that point a user to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from apa_cli.errors import UserError

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]  # activity, number done, total (0 if unknown)
_REPORT_EVERY = 100  # rows


def reported(activity: str, items: Iterable[Item], progress: Progress | None, total: int = 0) -> Iterator[Item]:
    """The items; `progress` is called as they are taken."""
    for count, item in enumerate(items):
        if progress is not None and count % _REPORT_EVERY == 0:
            progress(activity, count, total)
        yield item


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Reads all rows of a data set, or `most` rows of a larger one: chosen by `seed`, in their original order."""

    most: int | None = None
    seed: int = 0
    progress: Progress | None = None

    def numbers(self, count: int) -> Sequence[int]:
        """Indices into `count` rows that can be read by number."""
        if self.most is None or count <= self.most:
            return range(count)
        return sorted(random.Random(f"rows/{self.seed}").sample(range(count), self.most))

    def of(self, stream: Iterable[Item]) -> tuple[list[Item], int]:
        """The chosen rows of a stream, and the stream's length: Vitter's algorithm R (reservoir sampling)."""
        chance, kept, count = random.Random(f"rows/{self.seed}"), [], 0
        for count, item in enumerate(reported("read", stream, self.progress), start=1):
            if self.most is None or count <= self.most:
                kept.append((count, item))
            elif (place := chance.randrange(count)) < self.most:
                kept[place] = count, item
        return [item for _, item in sorted(kept, key=lambda pair: pair[0])], count


@dataclass(frozen=True, kw_only=True)
class Table:
    source: str  # file or data set, as the user named it
    rows: list[dict[str, Any]]
    places: list[str]  # of each row, in error messages: "FILE, line 7" (row, entry), counted from 1
    commit: str | None = None  # of a Hub data set, if known
    count: int | None = None  # rows of the data set, if only some were read
    padded: bool = False  # nested records share all their fields, with nulls in the gaps, as in Arrow

    def columns(self) -> list[str]:
        """Every column of any row, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


class EmptyError(UserError):
    """A prompt or response is null, empty or missing; data.empty=drop leaves its row out."""


class Findings(dict[str, tuple[int, str]]):
    """What deserves a warning: the number of rows and the place of the first, by description."""

    def add(self, what: str, place: str) -> None:
        count, first = self.get(what, (0, place))
        self[what] = count + 1, first

    def lines(self) -> list[str]:
        return [f"{what}: {n:,} prompt{'s' if n > 1 else ''}, the first {first}" for what, (n, first) in self.items()]


def without_nulls(value: Any) -> Any:
    """`value` with the null fields of its nested records removed."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


_KINDS = {  # bool before int, its base class
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def kind_of(value: object) -> str:
    return next((words for kind, words in _KINDS.items() if isinstance(value, kind)), f"of type {type(value).__name__}")


def listing(names: list[str]) -> str:
    return f"it has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it has no columns"


def check_text(value: object, place: str, what: str, *, empty: bool = False) -> str:
    """`value` if it is text. Raises UserError otherwise, EmptyError if it is null or, unless allowed, `empty`."""
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
