"""Settings side by side: a table, and each setting compared with another, paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from apa_cli.runs.folders import Run
from studies import measures
from studies.measures import Difference, Measure
from studies.page import DETAILS, table

Column = Callable[[Sequence[Run]], str]
Judged = Callable[[Sequence[Run], Sequence[Run]], Sequence[Measure]]  # what two settings are compared by


LONGEST = 10  # rows of a table in the page itself


@dataclass(frozen=True, kw_only=True)
class Row:
    cells: Sequence[str]  # of the first columns
    name: str  # what sentences call it
    runs: Sequence[Run]
    against: str = ""  # the name of the row that it is compared with


def mean(of: measures.Of | str, digits: int = 2) -> Column:
    return partial(measures.shown, of=of, digits=digits)


def third(name: str) -> Column:
    return mean(partial(measures.tail, name=name))


def count(of: Callable[[Run], bool]) -> Column:
    return lambda runs: f"{sum(map(of, runs))} of {len(runs)}"


LAST_THIRD = {f"{title}, last third": third(f"eval/{name}")
              for title, name in (("evaluator", "evaluator"), ("KL", "kl"), ("reward", "reward"))}  # fmt: skip
UNIQUE = {"different responses": mean("eval/unique_fraction")}
SECONDS = {"CPU seconds per iteration": mean(partial(measures.typical, name="time/cpu")),
           "wall seconds": mean(partial(measures.typical, name="time/iteration"))}  # fmt: skip


def report(
    rows: Sequence[Row],
    header: Sequence[str],
    columns: Mapping[str, Column],
    judged: Judged,
    *,
    picture: str,
    note: str,
) -> list[str]:
    """In short, the picture and the table if it is not a long one; every comparison in the details."""
    there = {row.name: row for row in rows if row.runs}
    differences = [
        measures.compare((row.name, row.runs), (row.against, there[row.against].runs), each)
        for row in there.values()
        if row.against in there
        for each in judged(row.runs, there[row.against].runs)
    ]
    cells = [[*row.cells, *(column(row.runs) for column in columns.values())] for row in there.values()]
    figures = [*table([*header, *columns], cells), ""]
    short = len(cells) <= LONGEST
    return [
        *answers(differences),
        "",
        picture,
        "",
        *(figures if short else []),
        f"{note} {measures.HALF}.",
        "",
        DETAILS,
        *([] if short else figures),
        *(f"- {difference.sentence()}" for difference in differences),
    ]


def answers(differences: Sequence[Difference]) -> list[str]:
    """A line for each measure: which settings are significantly higher or lower than what they are compared with."""
    found: dict[str, dict[str, list[str]]] = {}
    for each in differences:
        if each.judged:
            way = {1: "higher than", -1: "lower than", 0: "no significant difference from"}[each.sign]
            ways = found.setdefault(each.measure.short or each.measure.name, {})
            ways.setdefault(f"{way} {each.theirs}", []).append(each.ours)
    lines = [
        f"- {measure}: {'; '.join(f'{way}: ' + ', '.join(names) for way, names in ways.items())}."
        for measure, ways in found.items()
    ]
    return lines or ["Too few seeds to tell a difference."]
