"""A study's section of the page, between its markers."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from apa_cli.errors import UserError
from studies.runs import Found, Size

DETAILS = "<!-- details -->"  # a line: what follows is not for the page itself


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def circumstances(runs: Found, size: Size, *, planned: int) -> str:
    """On what, and how much of the study it is."""
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {version('torch')}"
    seeds = ", ".join(map(str, sorted({run.seed for found in runs.values() for run in found})))
    words = f"Measured on {machine}; built-in task, seeds {seeds}, {size.iterations} iterations."
    if (made := sum(map(len, runs.values()))) < planned:
        words += f" Only {made} of {planned} runs are there: figures of different settings may be over different seeds."
    return words + (" A quick run, to see that the script works: nothing here is evidence." if size.quick else "")


def with_details(page: Path, name: str, lines: Sequence[str]) -> list[str]:
    """`lines` with a link in place of what follows DETAILS, which goes to tables/NAME.md beside the page."""
    if DETAILS not in lines:
        return list(lines)
    cut = lines.index(DETAILS)
    file = page.parent / "tables" / f"{name}.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    head = [
        f"# All figures: {name}",
        "",
        f"Written by the same script as [{page.name}](../{page.name}), which explains them.",
        "",
    ]
    file.write_text("\n".join([*head, *lines[cut + 1 :]]) + "\n", "utf-8")
    return [*lines[:cut], f"All figures: [tables/{file.name}](tables/{file.name})."]


def write(page: Path, study: str, lines: Sequence[str]) -> None:
    """Put `lines` between the study's markers, and what follows DETAILS on a page of its own. Raises UserError."""
    begin, end = f"<!-- {study}: written by scripts/measure_methods.py {study} -->\n", f"<!-- end of {study} -->"
    text = page.read_text("utf-8")
    if begin not in text or end not in text.split(begin)[1]:
        raise UserError(
            str(page), f"no place for {study} in it", f"put {begin.strip()} and {end} where it should stand"
        )
    lines = with_details(page, study, lines)
    before, rest = text.split(begin)
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1], "utf-8")
