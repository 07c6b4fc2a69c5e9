"""What is written: tables, on what the runs were made, and a study's section between its markers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from apa_cli.tracking.report import format_seconds
from studies.runs import Found, Size

PROGRAM = "measure_methods.py"
DETAILS = "<!-- details -->"  # a line: what follows is not for the page itself


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def circumstances(found: Found, size: Size, *, planned: int, task: str) -> str:
    """On what, and how much of the study it is. Versions and hardware are those that the runs noted."""
    runs = [run for mine in found.values() for run in mine]
    files = [run.folder / "versions.json" for run in runs]
    noted = [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]
    torch, device = (" / ".join(sorted({str(n[name]) for n in noted if name in n})) for name in ("torch", "device"))
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    spent = format_seconds(sum(float(run.summary.get("seconds", 0)) for run in runs))
    words = f"Measured with torch {torch or '?'}, a run on {device or '?'}; {task}, seeds {seeds}, "
    words += f"{size.iterations} iterations; {len(runs)} runs, {spent} in all."
    if len(runs) < planned:
        words += f" Only {len(runs)} of {planned} runs are there: figures may be over different seeds."
    if found.failures:
        failed = "; ".join(f"`{name}` ({reason})" for name, reason in found.failures.items())
        words += f" Not finished, and left out: {failed}."
    return words + (" **A quick run, to see that the script works: nothing here is evidence.**" if size.quick else "")


def write(page: Path, name: str, lines: Sequence[str], *, program: str = "") -> None:
    """Put `lines` between the markers, which are added at the end if the page has none.

    What follows DETAILS goes to tables/NAME.md beside the page, with a link to it in its place.
    """
    if DETAILS in lines:
        cut, file = list(lines).index(DETAILS), page.parent / "tables" / f"{name}.md"
        head = f"Written by the same script as [{page.name}](../{page.name}), which explains them."
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join([f"# All figures: {name}", "", head, "", *lines[cut + 1 :]]) + "\n", "utf-8")
        lines = [*lines[:cut], f"All figures: [tables/{file.name}](tables/{file.name})."]
    text = page.read_text("utf-8") if page.exists() else ""
    begin = f"<!-- {name}: written by scripts/{program or f'{PROGRAM} {name}'} -->"
    body, end = "\n".join(lines), f"<!-- end of {name} -->"
    found = re.search(rf"(?<=<!-- {name}: )[^>]*-->\n(.*?){end}", text, re.DOTALL)
    if found is None:
        text += f"\n{begin}\n{body}\n{end}\n"
    else:
        text = f"{text[: found.start(1)]}{body}\n{text[found.end(1) :]}"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, "utf-8")
