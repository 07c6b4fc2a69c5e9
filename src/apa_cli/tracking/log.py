"""run.log, and the peace between the libraries' loggers and the live table.

Modules of this package log to `apa_cli`. While a run is open, that logger and the libraries' own write to run.log, and
pass through the terminal that draws the table instead of printing across it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apa_cli.files import separate
from apa_cli.secrets import environment_secrets, printable
from apa_cli.tracking.patient_file import DiskTrouble, PatientFile

LOG_FILE = "run.log"
LOGGER = "apa_cli"
LIBRARIES = ("transformers", "datasets", "huggingface_hub", "peft", "accelerate")
WARNINGS = "py.warnings"  # logger of logging.captureWarnings


@contextmanager
def open_run_log(
    run_dir: Path | None, terminal: logging.Handler | None = None, trouble: DiskTrouble | None = None
) -> Iterator[RunLog]:
    """run.log, which the logger `apa_cli` writes to as well as to `terminal`; afterwards all loggers are as they were.

    Without `run_dir` its lines wait in memory until `RunLog.open`, and are forgotten where that never comes.
    From the libraries, warnings and errors are kept. Python's warnings go to run.log only.
    """
    file = RunLog(None if run_dir is None else run_dir / LOG_FILE, trouble)
    handlers: list[logging.Handler] = [file] if terminal is None else [file, terminal]
    capturing = getattr(logging, "_warnings_showwarning", None) is not None
    loggers = [logging.getLogger(name) for name in (LOGGER, *LIBRARIES, WARNINGS)]
    before = [(logger, list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers = [file] if logger.name == WARNINGS else list(handlers)
            logger.propagate = False
        logging.getLogger(LOGGER).setLevel(logging.INFO)
        if not capturing:
            logging.captureWarnings(True)
        yield file
    finally:
        if not capturing:
            logging.captureWarnings(False)
        for logger, logger.handlers, logger.propagate, level in before:
            logger.setLevel(level)
        file.close()


class RunLog(logging.Handler):
    """Appends to run.log. Never raises or prints: what the disk refuses waits for it, odd records go in as they are.

    Whatever is logged, tracebacks included, the environment's secrets stay out of the file.
    """

    def __init__(self, path: Path | None, trouble: DiskTrouble | None = None) -> None:
        super().__init__()
        self.file: PatientFile | None = None
        self._trouble, self._waiting = trouble, b""
        self._secrets = environment_secrets()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        if path is not None:
            self.open(path)

    def open(self, path: Path) -> PatientFile:
        """Append to `path` from now on, first the lines kept so far, unless it is open already."""
        if self.file is None:
            separate(path)
            self.file = PatientFile(path, self._trouble)
            if not _ends_a_line(path):  # the last process was killed
                self.file.write(b"\n")
            self.file.write(self._waiting)
        return self.file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            text = f"{record.levelname} {record.name}: {message_of(record)}"
        line = printable(text.rstrip(), self._secrets) + "\n"
        encoded = line.encode("utf-8", errors="backslashreplace")
        if self.file is None:
            self._waiting += encoded
        else:
            self.file.write(encoded)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()


def message_of(record: logging.LogRecord) -> str:
    """The formatted message, or its parts if formatting fails."""
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg!r} {record.args!r}"


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        return file.seek(0, 2) == 0 or (file.seek(-1, 2) >= 0 and file.read(1) == b"\n")
