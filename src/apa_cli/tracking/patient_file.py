"""Appending to files on a disk that is full, read-only or broken for a while: nothing is lost, and nothing raised."""

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
    """Says once, for all files that share it, that the disk refuses them, and once that it takes them again."""

    def __init__(self, warn: Callable[[str], None] = _log.warning) -> None:
        self._warn = warn
        self._refused: set[Path] = set()
        self._lock = threading.Lock()

    def refuses(self, path: Path, error: OSError) -> None:
        with self._lock:
            new = not self._refused
            self._refused.add(path)
        if new:  # outside the lock: the warning is itself written to a file
            reason = error.strerror or type(error).__name__
            self._warn(redact_text(f"{path} cannot be written ({reason}): lines are kept in memory until it can"))

    def takes(self, path: Path) -> None:
        with self._lock:
            over = self._refused == {path}
            self._refused.discard(path)
        if over:
            self._warn("the run's files can be written again: the lines that waited are in them")


class PatientFile:
    """Appends to a file. What the disk does not take is kept and written at the next chance: in order, nothing twice.

    Only opening may raise OSError.
    """

    def __init__(self, path: Path, trouble: DiskTrouble | None = None) -> None:
        self.path = path
        self._trouble = trouble or DiskTrouble()
        self.pending = bytearray()  # what is not on the disk yet; it may begin in the middle of a line
        self.problem: OSError | None = None  # why something is pending
        self._file = self._open()
        self._size = os.fstat(self._file).st_size

    def write(self, data: bytes) -> None:
        self.pending += data
        self._drain()

    def sync(self) -> bool:
        """Everything to the disk itself. Whether that succeeded."""
        if not self._drain():
            return False
        try:
            os.fsync(self._file)
        except OSError as error:
            self._refuse(error)
            return False
        return True

    def close(self) -> bool:
        """Whether everything has been written. May be called twice."""
        written = self._drain()
        if self._file < 0:
            return written
        file, self._file = self._file, -1
        try:
            os.close(file)
        except OSError as error:  # network file systems tell here of a quota
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
        """After an error the handle may be dead, and bytes may lie in the file that no write has reported."""
        file, self._file = self._file, self._open()
        with contextlib.suppress(OSError):
            os.close(file)
        if os.fstat(self._file).st_size > self._size:
            os.ftruncate(self._file, self._size)
