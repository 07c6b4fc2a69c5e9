"""Tables of several runs: one row a run as CSV, means over seeds as Markdown, a few lines for the terminal."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apa_cli.config.sources import shown
from apa_cli.runs.figures import draw_all
from apa_cli.runs.folders import FAILED, FINISHED, UNFINISHED, Run
from apa_cli.runs.settings import FOOTNOTE, Estimate, Setting, group
from apa_cli.secrets import printable, redact_text
from apa_cli.tracking.pages import aligned, cell, format_number, image, markdown_table, relative

# Metric, title, unit, digits.
MEASURES = (
    ("eval/reward", "reward", "", 3),
    ("eval/evaluator", "evaluator", "", 3),
    ("eval/kl", "KL", "nats per response", 2),
    ("eval/entropy", "entropy", "nats per token", 3),
    ("eval/unique_fraction", "different", "fraction", 2),
    ("eval/response_length", "length", "tokens", 1),
)
_SETTINGS = (
    "seed",
    "objective.name",
    "objective.kl_lambda",
    "objective.kl_coef",
    "objective.kl_target",
    "optimizer.learning_rate",
)
Failure = tuple[str, str]  # name, reason


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What the table, the pictures and the page are made of."""

    title: str
    folder: Path  # where the report lies; runs are linked relative to it
    runs: Sequence[Run]
    conflicts: Sequence[Failure] = ()  # members refused because their folder holds another finished run

    @cached_property
    def settings(self) -> list[Setting]:
        return group(self.runs)

    @property
    def failures(self) -> list[Failure]:
        return [(self.label(run), run.reason) for run in self.runs if run.status == FAILED] + list(self.conflicts)

    def label(self, run: Run) -> str:
        """What sets a run apart: its overrides that not all have; the folder's name where that says too little."""
        return self._labels[run.folder]

    @cached_property
    def _labels(self) -> dict[Path, str]:
        common = set.intersection(*(set(run.overrides) for run in self.runs)) if len(self.runs) > 1 else set()
        labels = [" ".join(o for o in run.overrides if o not in common) for run in self.runs]
        pairs = zip(self.runs, labels, strict=True)
        return {run.folder: label if label and labels.count(label) == 1 else run.name for run, label in pairs}

    def counts(self) -> str:
        """`9 finished, 1 failed`."""
        found = Counter(run.status for run in self.runs)
        found[FAILED] = len(self.failures)
        order = (FINISHED, UNFINISHED, FAILED)
        return ", ".join(f"{found[status]} {status}" for status in order if found[status]) or "no runs"


def write_tables(overview: Overview, stem: str) -> tuple[list[Path], list[Path]]:
    """STEM.csv, STEM.md and plots/*.png in the overview's folder: the two tables, then the pictures."""
    overview.folder.mkdir(parents=True, exist_ok=True)
    table = overview.folder / f"{stem}.csv"
    write_csv(overview.runs, table)
    pictures = draw_all(overview.settings, overview.folder)
    page = overview.folder / f"{stem}.md"
    page.write_text(printable("\n".join(markdown(overview, pictures))), "utf-8", "backslashreplace")
    return [table, page], pictures


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """One row a run. The eval/* columns are of the newest evaluation, or of the last rollout where there was none."""
    others = [name for run in runs for row in run.rows for name in row if name.startswith("eval/")]
    metrics = list(dict.fromkeys([*(name for name, *_ in MEASURES), *others]))
    with path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        header = ["run", "status", "reason", "iterations", "seconds", "measured_on"]
        writer.writerow([*header, *_SETTINGS, *metrics, "overrides"])
        for run in runs:
            about = [run.name, run.status, redact_text(run.reason), run.iterations, run.summary.get("seconds")]
            measured = ("held-out prompts" if run.evaluated else "last rollout") if run.rows else None
            settings = [run.config.get(key) for key in _SETTINGS]
            row = [*about, measured, *settings, *map(run.last, metrics), redact_text(" ".join(run.overrides))]
            writer.writerow(["" if value is None else value for value in row])


def settings_table(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean ± half of the interval for each setting."""
    measured = [measure for measure in MEASURES if any(setting.final(measure[0]) for setting in settings)]
    header = ["setting", "runs", *(f"{title}, {unit}" if unit else title for _, title, unit, _ in measured)]
    rows = []
    for setting in settings:
        count = str(len(setting.counted))
        if any(run.status != FINISHED for run in setting.counted):
            count += " unfinished"
        rows.append([setting.label, count, *(spread(setting.final(name), digits) for name, *_, digits in measured)])
    return header, rows


def spread(value: Estimate | None, digits: int) -> str:
    if value is None or value.half is None:
        return format_number(value.mean if value else None, digits)
    return f"{value.mean:.{digits}f} ± {value.half:.{digits}f}"


def runs_table(overview: Overview) -> tuple[list[str], list[list[str]]]:
    runs = overview.runs
    measured = [measure for measure in MEASURES if any(run.last(measure[0]) is not None for run in runs)]
    header = ["run", "status", "iterations", *(title for _, title, _, _ in measured)]
    return header, [
        [overview.label(run), run.status, str(run.iterations)]
        + [format_number(run.last(name), digits) for name, *_, digits in measured]
        for run in runs
    ]


def notes(overview: Overview) -> list[str]:
    """Footnotes: what ± means, what was counted, what was not measured on held-out prompts."""
    lines = [f"At the end of each run, on held-out prompts. {FOOTNOTE}"]
    if any(run.rows and not run.evaluated for run in overview.runs):
        lines.append("Runs without held-out prompts are judged by their last rollout.")
    counted = [run for setting in overview.settings for run in setting.counted]
    if any(run.status != FINISHED for run in counted):
        lines.append("A setting with no finished run shows the newest figures of those that are not.")
    return lines


def markdown(overview: Overview, pictures: Sequence[Path]) -> list[str]:
    lines = [f"# {overview.title}", "", f"{overview.counts()}.".capitalize(), ""]
    if overview.settings:
        header, rows = settings_table(overview.settings)
        lines += [*markdown_table(header, (map(cell, row) for row in rows)), "", *notes(overview), ""]
    for path in pictures:
        lines += [image(path, overview.folder), ""]
    if overview.settings:
        lines += ["Lines: means over seeds. Small points: single runs. Bands: from the lowest seed to the highest.", ""]
    if overview.failures:
        lines += ["## Failed", "", *(f"- `{name}`: {cell(reason)}" for name, reason in overview.failures), ""]
    header, rows = runs_table(overview)
    links = [f"[{cell(overview.label(run))}](<{relative(run.folder, overview.folder)}>)" for run in overview.runs]
    linked = [[link, *map(cell, row[1:])] for link, row in zip(links, rows, strict=True)]
    return [*lines, "## Runs", "", *markdown_table(header, linked), ""]


def terminal_lines(overview: Overview, files: Iterable[Path], *, page: Path | None = None) -> list[str]:
    """The table by setting, what failed and why, and where everything is. With a page, of any runs; else of a sweep."""
    lines = [f"{overview.title}: {overview.counts()}"]
    header, rows = settings_table(overview.settings)
    if rows:
        lines += [f"  {line}" for line in aligned([[title.split(",")[0] for title in header], *rows])]
    unfinished = [run for run in overview.runs if run.status == UNFINISHED]
    lines += [f"  failed: {name}: {reason}" for name, reason in overview.failures]
    lines += [f"  not finished: {overview.label(run)}, {run.iterations} iterations" for run in unfinished]
    if page is None and (overview.failures or unfinished):
        lines.append("The same command again runs only what is not finished.")
    lines += [f"Folder    {shown(str(overview.folder))}", f"Files     {', '.join(path.name for path in files)}"]
    return lines if page is None else [*lines, f"Page      {shown(str(page))}"]
