"""Append to files without losing lines or raising errors while a disk is full, read-only or broken."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from apa_cli.secrets import redact_text

_log = logging.getLogger("apa_cli")


class DiskTrouble:
    """Warns once, for all files that share it, when the disk refuses writes, and once when it accepts them again."""

    def __init__(self, warn: Callable[[str], None] = _log.warning) -> None:
        self._warn = warn
        self._refused: set[Path] = set()
        self._lock = threading.Lock()

    def refuses(self, path: Path, error: OSError) -> None:
        with self._lock:
            new = not self._refused
            self._refused.add(path)
        if new:  # outside the lock, as the warning is written to a file
            reason = error.strerror or type(error).__name__
            self._warn(redact_text(f"{path} cannot be written ({reason}): lines are kept in memory until it can"))

    def takes(self, path: Path) -> None:
        with self._lock:
            over = self._refused == {path}
            self._refused.discard(path)
        if over:
            self._warn("the run's files can be written again, and hold the lines that were kept")


class PatientFile:
    """Appends to a file, and keeps what the disk refuses for the next write, in order. Only opening raises OSError."""

    def __init__(self, path: Path, trouble: DiskTrouble | None = None) -> None:
        self.path = path
        self._trouble = trouble or DiskTrouble()
        self.pending = bytearray()  # not on the disk yet; may start in the middle of a line
        self.problem: OSError | None = None  # why something is pending
        self._file = self._open()
        self._size = os.fstat(self._file).st_size

    def write(self, data: bytes) -> None:
        self.pending += data
        self._drain()

    def sync(self) -> bool:
        """Flush everything to the disk. Returns whether that succeeded."""
        if not self._drain():
            return False
        try:
            os.fsync(self._file)
        except OSError as error:
            self._refuse(error)
            return False
        return True

    def close(self) -> bool:
        """Close the file. Returns whether everything was written. May be called twice."""
        written = self._drain()
        if self._file < 0:
            return written
        file, self._file = self._file, -1
        try:
            os.close(file)
        except OSError as error:  # network file systems report an exceeded quota here
            self._refuse(error)
        return written

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _drain(self) -> bool:
        if self._file < 0:
            return not self.pending
        try:
            if self.problem is not None:
                self._begin_again()
            while self.pending:
                count = os.write(self._file, self.pending)
                del self.pending[:count]
                self._size += count
        except OSError as error:
            self._refuse(error)
            return False
        if self.problem is not None:
            self.problem = None
            self._trouble.takes(self.path)
        return True

    def _refuse(self, error: OSError) -> None:
        self.problem = error
        self._trouble.refuses(self.path, error)

    def _begin_again(self) -> None:
        """Reopen the file, as the handle may be dead, and cut bytes that no write has reported."""
        file, self._file = self._file, self._open()
        with contextlib.suppress(OSError):
            os.close(file)
        if os.fstat(self._file).st_size > self._size:
            os.ftruncate(self._file, self._size)
