"""Show a run's progress: a live table with a progress bar, or plain lines without a terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from apa_cli.secrets import printable

RECENT = 8  # iterations in the live table


@dataclass(frozen=True)
class Column:
    """One column. `names` are metrics in order of preference: an evaluation before training has only the later ones."""

    title: str
    width: int
    names: tuple[str, ...]
    digits: int

    def text(self, metrics: Mapping[str, float]) -> str:
        """Fixed-point if that shows enough digits, otherwise with an exponent."""
        value = next((v for name in self.names if (v := metrics.get(name)) is not None and v == v), None)
        if value is None:
            return "–"
        text = f"{value:.{self.digits}f}"
        return f"{value:.1e}" if len(text) > self.width or (value != 0 and float(text) == 0) else text


def columns_of(*, held_out: bool, evaluator: bool, logged: bool = False) -> tuple[Column, ...]:
    """Columns of the table, at most 80 characters. Logged responses have no reward."""
    columns = [
        Column("logged", 7, ("logged/score_mean",), 3) if logged else Column("reward", 7, ("reward/mean",), 3),
        Column("held-out", 8, ("eval/reward",), 3),
        Column("evaluator", 9, ("eval/evaluator",), 3),
        Column("KL", 6, ("kl/to_init", "eval/kl"), 2),
        Column("entropy", 7, ("policy/entropy", "eval/entropy"), 3),
        Column("length", 6, ("policy/response_length", "eval/response_length"), 1),
        Column("loss", 7, ("objective/policy_loss",), 3),
        Column("s/iter", 6, ("time/iteration",), 2),
    ]
    wanted = {"held-out": held_out, "evaluator": evaluator}
    return tuple(column for column in columns if wanted.get(column.title, True))


def choose_console(kind: str) -> str:
    """`auto` is live in a terminal that can move its cursor, otherwise plain."""
    if kind != "auto":
        return kind
    return "live" if sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") else "plain"


class Terminal(logging.Handler):
    """The live table or the plain lines; as a logging handler, notes and warnings beside them.

    Records with `terminal=False` are for run.log only. Output that a closed pipe or a full disk refuses is lost, and
    never ends the run. A context manager.
    """

    def __init__(
        self,
        kind: str,
        *,
        iterations: int,
        start_iteration: int,
        columns: Sequence[Column],
        console: Console | None = None,
    ) -> None:
        super().__init__(logging.WARNING if kind == "quiet" else logging.INFO)
        self.kind, self.iterations, self.columns = kind, iterations, tuple(columns)
        self.console = console or Console(force_terminal=True if kind == "live" else None, highlight=False)
        self._number_width = max(4, 2 * len(str(iterations)) + 1)
        self._recent: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=RECENT)
        self._header_printed = False
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(24),
            TimeElapsedColumn(),
            TextColumn("elapsed,", style="dim"),
            TimeRemainingColumn(),
            TextColumn("left", style="dim"),
            TextColumn("{task.description}", style="cyan", markup=False),
            console=self.console,
            speed_estimate_period=float("inf"),  # at the pace of this process so far
        )
        self._task = self._bar.add_task("", total=iterations, completed=start_iteration)

    def __enter__(self) -> Terminal:
        if self.kind == "live":
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop updating the table. Later lines are printed below it."""
        live, self._live = self._live, None
        self.phase("")
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Current work and its progress, for the live table."""
        count = f" {done:,}/{total:,}" if total else f" {done:,}" if done else ""
        self._bar.update(self._task, description=name + count)

    def row(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._recent.append((iteration, dict(metrics)))
        self._bar.update(self._task, completed=iteration)
        if self.kind == "plain":
            if not self._header_printed:
                self._header_printed = True
                self._print(self._line("iter", [column.title for column in self.columns]))
            self._print(self._line(f"{iteration}/{self.iterations}", [c.text(metrics) for c in self.columns]))

    def _line(self, first: str, cells: Sequence[str]) -> str:
        rest = (f"{cell:>{column.width}}" for cell, column in zip(cells, self.columns, strict=True))
        return "  ".join([f"{first:>{self._number_width}}", *rest])

    def words(self, iteration: int, metrics: Mapping[str, float]) -> str:
        """The numbers as one line of a log, with their names."""
        pairs = [(column.title, column.text(metrics)) for column in self.columns]
        return ", ".join([f"iteration {iteration}", *(f"{title} {text}" for title, text in pairs if text != "–")])

    def lines(self, lines: Sequence[str]) -> None:
        """Print the summary, unless the console is quiet."""
        if self.kind != "quiet":
            for line in lines:
                self._print(printable(line))

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "terminal", True):
            return
        try:
            message = printable(record.getMessage())
        except Exception:  # a message and arguments that do not fit together
            return self.handleError(record)
        if record.levelno < logging.WARNING:
            return self._print(message)
        word = "error" if record.levelno >= logging.ERROR else "warning"
        if self._live is not None:
            return self._print(Text.assemble((f"{word}: ", "bold yellow"), message))
        with contextlib.suppress(OSError, ValueError):
            print(f"{word}: {message}", file=sys.stderr, flush=True)

    def _print(self, message: str | Text) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._live is not None:
                self.console.print(message, markup=False)
            else:  # not wrapped
                print(message, file=self.console.file, flush=True)

    def _render(self) -> RenderableType:
        recent = list(self._recent)
        if not recent:
            return self._bar.get_renderable()
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("iter", justify="right", style="dim", header_style="dim")
        for column in self.columns:
            table.add_column(column.title, justify="right", min_width=column.width, header_style="bold")
        for iteration, metrics in recent:
            cells = [column.text(metrics) for column in self.columns]
            table.add_row(str(iteration), *cells, style=None if iteration == recent[-1][0] else "dim")
        return Group(table, self._bar.get_renderable())
