"""Show a run's progress: a live table with a progress bar, or plain lines without a terminal."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from apa_cli.secrets import printable
from apa_cli.tracking.log import message_of

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RECENT = 8  # iterations in the live table


@dataclass(frozen=True)
class Column:
    """One column. `names` are metrics in order of preference: an evaluation before training has only the later ones."""

    title: str
    width: int
    names: tuple[str, ...]
    digits: int

    def text(self, metrics: Mapping[str, float]) -> str:
        for name in self.names:
            value = metrics.get(name)
            if value is not None and value == value:
                return _fit(value, self.digits, self.width)
        return "–"


def columns_of(*, held_out: bool, evaluator: bool, logged: bool = False) -> tuple[Column, ...]:
    """Columns of the table, at most 80 characters. Logged responses have no reward."""
    columns = [Column("logged", 7, ("logged/score_mean",), 3) if logged else Column("reward", 7, ("reward/mean",), 3)]
    if held_out:
        columns.append(Column("held-out", 8, ("eval/reward",), 3))
    if evaluator:
        columns.append(Column("evaluator", 9, ("eval/evaluator",), 3))
    columns += [
        Column("KL", 6, ("kl/to_init", "eval/kl"), 2),
        Column("entropy", 7, ("policy/entropy", "eval/entropy"), 3),
        Column("length", 6, ("policy/response_length", "eval/response_length"), 1),
        Column("loss", 7, ("objective/policy_loss",), 3),
        Column("s/iter", 6, ("time/iteration",), 2),
    ]
    return tuple(columns)


def choose_console(kind: str) -> str:
    """`auto` is live in a terminal that can move its cursor, otherwise plain."""
    if kind != "auto":
        return kind
    return "live" if sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") else "plain"


class Terminal(logging.Handler):
    """The live table or the plain lines; as a logging handler, notes and warnings beside them.

    Records with `terminal=False` are for run.log only. A closed pipe ends the output and a full disk interrupts it;
    neither ends the run.
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
        self.console = console or Console(
            force_terminal=True if kind == "live" else None, highlight=False, soft_wrap=False
        )
        self._number_width = max(4, 2 * len(str(iterations)) + 1)
        self._start, self._iteration = start_iteration, start_iteration
        self._began = time.monotonic()
        self._finished_at = self._began
        self._phase = ("", 0, 0)
        self._recent: tuple[tuple[int, Mapping[str, float]], ...] = ()  # replaced whole: another thread draws it
        self._header_printed = False
        self._live: Live | None = None

    def __enter__(self) -> Terminal:
        if self.kind == "live":
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop updating the table. Later lines are printed below it."""
        live, self._live = self._live, None
        self._phase = ("", 0, 0)
        if live is not None:
            try:
                live.stop()
            except OSError:
                self.kind = "quiet"

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Current work and its progress, for the live table."""
        self._phase = (name, done, total)

    def row(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._iteration, self._finished_at = iteration, time.monotonic()
        self._recent = (*self._recent[1 - RECENT :], (iteration, dict(metrics)))
        if self.kind == "plain":
            if not self._header_printed:
                self._header_printed = True
                self._print(self.header())
            self._print(self.line(iteration, metrics))

    def header(self) -> str:
        return "  ".join(
            [f"{'iter':>{self._number_width}}", *(f"{column.title:>{column.width}}" for column in self.columns)]
        )

    def line(self, iteration: int, metrics: Mapping[str, float]) -> str:
        number = f"{iteration}/{self.iterations}"
        return "  ".join(
            [f"{number:>{self._number_width}}", *(f"{column.text(metrics):>{column.width}}" for column in self.columns)]
        )

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
        message = printable(message_of(record))
        if record.levelno < logging.WARNING:
            self._print(message)
            return
        word = "error" if record.levelno >= logging.ERROR else "warning"
        if self._live is not None:
            self._print(Text.assemble((f"{word}: ", "bold yellow"), message))
        else:
            try:
                print(f"{word}: {message}", file=sys.stderr, flush=True)
            except (OSError, ValueError) as error:
                self._lose(error)

    def _print(self, message: str | Text) -> None:
        try:
            if self._live is not None:
                self.console.print(message, markup=False)
            else:  # not wrapped
                print(message, file=self.console.file, flush=True)
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: OSError | ValueError) -> None:
        """Stop printing if the reader is gone or the file is closed, but not if a disk is full."""
        if not (isinstance(error, OSError) and error.errno in FULL):
            self.kind = "quiet"

    def _render(self) -> RenderableType:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("iter", justify="right", style="dim", header_style="dim")
        for column in self.columns:
            table.add_column(column.title, justify="right", min_width=column.width, header_style="bold")
        recent = self._recent
        newest = recent[-1][0] if recent else None
        for iteration, metrics in recent:
            cells = [column.text(metrics) for column in self.columns]
            table.add_row(str(iteration), *cells, style=None if iteration == newest else "dim")
        bar = Table.grid(padding=(0, 1), expand=False)
        name, done, total = self._phase
        phase = Text(f"{name} {done:,}/{total:,}" if total else f"{name} {done:,}" if done else name, style="cyan")
        elapsed = f"{clock(time.monotonic() - self._began)} elapsed"
        if (done or total) and not recent:  # before the first iteration, when data are read, the bar is the phase's
            bar.add_row(phase, ProgressBar(total=total or None, completed=done, width=24), Text(elapsed, style="dim"))
        else:
            bar.add_row(
                Text(f"{self._iteration}/{self.iterations}"),
                ProgressBar(total=self.iterations, completed=self._iteration, width=24),
                Text(f"{elapsed}, {self.remaining()} left", style="dim"),
                phase,
            )
        return Group(table, bar) if recent else bar

    def remaining(self) -> str:
        """Time left at the pace of this process so far."""
        done = self._iteration - self._start
        if done <= 0:
            return "–:––"
        pace = (self._finished_at - self._began) / done
        expected = pace * (self.iterations - self._iteration) - (time.monotonic() - self._finished_at)
        return clock(max(0.0, expected))


def clock(seconds: float) -> str:
    """0:07, 12:30, 3:05:00."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _fit(value: float, digits: int, width: int) -> str:
    """Fixed-point if that shows enough digits, otherwise with an exponent."""
    text = f"{value:.{digits}f}"
    if len(text) > width or (value != 0 and float(text) == 0):
        text = f"{value:.1e}"
    return text
