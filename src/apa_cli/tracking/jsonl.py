"""JSON lines that survive a crash and a full disk: one unbuffered write per line, no NaN."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apa_cli.config.sources import shown
from apa_cli.errors import UserError
from apa_cli.files import json_value, write_text
from apa_cli.tracking.patient_file import DiskTrouble, PatientFile


class JsonLines(PatientFile):
    """Appends one object a line.

    Lines of iterations after `start_iteration`, which a resumed run repeats, are dropped first; None begins an empty
    file.
    """

    def __init__(self, path: Path, *, start_iteration: int | None = None, trouble: DiskTrouble | None = None) -> None:
        _rewind(path, start_iteration)
        super().__init__(path, trouble)

    def add(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(json_value(record), ensure_ascii=False, allow_nan=False) + "\n"
        # Lone surrogates, which UTF-8 has no bytes for, become \uXXXX escapes: still JSON.
        self.write(line.encode("utf-8", errors="backslashreplace"))

    def read(self) -> list[dict[str, Any]]:
        """All objects, including those not on the disk yet."""
        return _parse(self.content(), self.path)

    def content(self) -> bytes:
        """The file's bytes and those not on the disk yet."""
        return self.path.read_bytes() + self.pending


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file, [] if there is none. Skips an incomplete last line; other damage raises ValueError."""
    return _parse(path.read_bytes(), path) if path.exists() else []


def _parse(content: bytes, path: Path) -> list[dict[str, Any]]:
    lines = content.split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # an incomplete last line
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        records.append(record)
    return records


def _rewind(path: Path, start_iteration: int | None) -> None:
    """Keep lines up to `start_iteration`, replacing the file at once."""
    try:
        lines = [] if start_iteration is None else read_json_lines(path)
        kept = [record for record in lines if start_iteration is not None and record["iteration"] <= start_iteration]
    except (ValueError, KeyError, TypeError) as error:
        text = str(error).removeprefix(f"{path}, ")
        problem = text if isinstance(error, ValueError) else "a line has no number as its iteration"
        raise UserError(shown(str(path)), problem, "fix the line, or move the file away") from error
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
