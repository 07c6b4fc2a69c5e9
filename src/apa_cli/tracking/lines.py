"""Files that grow line by line: a full disk loses no line, a crash tears the last one at most, and JSON has no NaN."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apa_cli.config.sources import shown
from apa_cli.errors import UserError
from apa_cli.files import json_value, write_text
from apa_cli.secrets import redact_text

_log = logging.getLogger("apa_cli")


class DiskTrouble:
    """Warns once, for all files that share it, when the disk refuses writes, and once when it accepts them again."""

    def __init__(self, warn: Callable[[str], None] = _log.warning) -> None:
        self._warn = warn
        self._refused: set[Path] = set()

    def refuses(self, path: Path, error: OSError) -> None:
        new = not self._refused
        self._refused.add(path)
        if new:
            reason = error.strerror or type(error).__name__
            self._warn(redact_text(f"{path} cannot be written ({reason}): lines are kept in memory until it can"))

    def takes(self, path: Path) -> None:
        over = self._refused == {path}
        self._refused.discard(path)
        if over:
            self._warn("the run's files can be written again, and hold the lines that were kept")


def _existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)


class PatientFile:
    """Appends to a file, and keeps what the disk refuses for the next write, in order. Only opening raises OSError."""

    def __init__(self, path: Path, trouble: DiskTrouble | None = None) -> None:
        self.path = path
        self.pending = bytearray()  # not on the disk yet; may start in the middle of a line
        self.problem: OSError | None = None  # why something is pending
        self._trouble = trouble or DiskTrouble()
        with path.open("ab") as file:
            self._size = file.tell()

    def write(self, data: bytes = b"", *, sync: bool = False) -> bool:
        """Append, and with `sync` flush to the disk. Returns whether everything was written."""
        self.pending += data
        try:
            # anew, as a network disk may let handles die; what was deleted is not made again, without its lines
            with open(self.path, "ab", buffering=0, opener=_existing) as file:
                if self.problem is not None and file.tell() > self._size:
                    file.truncate(self._size)  # bytes that a failed write left behind
                while self.pending:
                    count = os.write(file.fileno(), self.pending)
                    del self.pending[:count]
                    self._size += count
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            self.problem = error
            self._trouble.refuses(self.path, error)
            return False
        if self.problem is not None:
            self.problem = None
            self._trouble.takes(self.path)
        return True


class JsonLines(PatientFile):
    """Appends one object a line.

    Lines of iterations after `start_iteration`, which a resumed run repeats, are dropped first; None begins an empty
    file. Raises UserError if the file cannot be read.
    """

    def __init__(self, path: Path, *, start_iteration: int | None = None, trouble: DiskTrouble | None = None) -> None:
        try:
            rows = [] if start_iteration is None else read_json_lines(path)
            kept = [row for row in rows if start_iteration is not None and row["iteration"] <= start_iteration]
        except (ValueError, KeyError, TypeError) as error:
            damaged = isinstance(error, ValueError)
            problem = str(error).removeprefix(f"{path}, ") if damaged else "a line has no number as its iteration"
            raise UserError(shown(str(path)), problem, "fix the line, or move the file away") from error
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        super().__init__(path, trouble)

    def add(self, *records: Mapping[str, Any]) -> None:
        lines = [json.dumps(json_value(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
        # Lone surrogates, which UTF-8 has no bytes for, become \uXXXX escapes: still JSON.
        self.write("".join(lines).encode("utf-8", errors="backslashreplace"))

    def content(self) -> bytes:
        """The file's bytes and those not on the disk yet."""
        return self.path.read_bytes() + self.pending

    def read(self) -> list[dict[str, Any]]:
        """All objects, including those not on the disk yet."""
        return _parse(self.content(), self.path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file, [] if there is none. Skips an incomplete last line; other damage raises ValueError."""
    return _parse(path.read_bytes(), path) if path.exists() else []


def _parse(content: bytes, path: Path) -> list[dict[str, Any]]:
    lines = content.split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
    return records
