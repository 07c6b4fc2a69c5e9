"""run.log, and the peace between the libraries' loggers and the live table.

Modules of this package log to `apa_cli`. While a run is open, that logger and the libraries' own write to run.log, and
pass through the terminal that draws the table instead of printing across it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apa_cli.tracking.secrets import environment_secrets, redact_text

LOG_FILE = "run.log"
LOGGER = "apa_cli"
LIBRARIES = ("transformers", "datasets", "huggingface_hub", "peft", "accelerate")
WARNINGS = "py.warnings"  # where logging.captureWarnings sends warnings.warn


@contextmanager
def open_run_log(run_dir: Path, terminal: logging.Handler | None = None) -> Iterator[logging.Logger]:
    """The logger `apa_cli`, writing to run.log and to `terminal`; afterwards all loggers are as they were.

    From the libraries, warnings and errors are kept. Python's warnings go to run.log only.
    """
    file = logging.FileHandler(run_dir / LOG_FILE, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handlers = [file] if terminal is None else [file, terminal]
    capturing = getattr(logging, "_warnings_showwarning", None) is not None
    saved = [_Saved(logging.getLogger(name)) for name in (LOGGER, *LIBRARIES, WARNINGS)]
    try:
        for state in saved:
            state.logger.handlers = [file] if state.logger.name == WARNINGS else list(handlers)
            state.logger.propagate = False
        logger = logging.getLogger(LOGGER)
        logger.setLevel(logging.INFO)
        if not capturing:
            logging.captureWarnings(True)
        yield logger
    finally:
        if not capturing:
            logging.captureWarnings(False)
        for state in saved:
            state.restore()
        file.close()


class _Saved:
    """What a logger was before a run."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.handlers, self.propagate, self.level = list(logger.handlers), logger.propagate, logger.level

    def restore(self) -> None:
        self.logger.handlers, self.logger.propagate = self.handlers, self.propagate
        self.logger.setLevel(self.level)


class _RedactingFormatter(logging.Formatter):
    """Whatever is logged, tracebacks included, the environment's secrets stay out of the file."""

    def __init__(self, format: str) -> None:
        super().__init__(format)
        self._secrets = environment_secrets()

    def format(self, record: logging.LogRecord) -> str:
        return redact_text(super().format(record).rstrip(), self._secrets)
