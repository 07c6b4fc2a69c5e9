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
from apa_cli.tracking.lines import DiskTrouble, PatientFile

LOG_FILE = "run.log"
LOGGER = "apa_cli"
LIBRARIES = ("transformers", "datasets", "huggingface_hub", "peft", "accelerate")
WARNINGS = "py.warnings"  # logger of logging.captureWarnings


class RunLog(logging.Handler):
    """Appends to run.log, and keeps what the disk refuses. The environment's secrets stay out, of tracebacks too."""

    def __init__(self, trouble: DiskTrouble | None = None) -> None:
        super().__init__()
        self.file: PatientFile | None = None
        self._trouble, self._waiting = trouble, b""
        self._secrets = environment_secrets()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))

    def open(self, path: Path) -> PatientFile:
        """Append to `path` from now on, first the lines kept so far, unless it is open already."""
        if self.file is None:
            separate(path)
            self.file = PatientFile(path, self._trouble)
            self.file.write(self._waiting)
        return self.file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = printable(self.format(record).rstrip(), self._secrets) + "\n"
        except Exception:  # a message and arguments that do not fit together
            return self.handleError(record)
        encoded = line.encode("utf-8", errors="backslashreplace")
        if self.file is None:
            self._waiting += encoded
        else:
            self.file.write(encoded)


@contextmanager
def open_run_log(
    run_dir: Path | None, terminal: logging.Handler | None = None, trouble: DiskTrouble | None = None
) -> Iterator[RunLog]:
    """run.log, which the logger `apa_cli` writes to as well as to `terminal`; afterwards all loggers are as they were.

    Without `run_dir` its lines wait in memory until `RunLog.open`, and are forgotten where that never comes.
    From the libraries, warnings and errors are kept. Python's warnings go to run.log only.
    """
    file = RunLog(trouble)
    if run_dir is not None:
        file.open(run_dir / LOG_FILE)
    loggers = [logging.getLogger(name) for name in (LOGGER, *LIBRARIES, WARNINGS)]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers = [file] if terminal is None or logger.name == WARNINGS else [file, terminal]
            logger.propagate = False
        logging.getLogger(LOGGER).setLevel(logging.INFO)
        logging.captureWarnings(True)
        yield file
    finally:
        logging.captureWarnings(False)
        for logger, logger.handlers, logger.propagate, level in before:
            logger.setLevel(level)
