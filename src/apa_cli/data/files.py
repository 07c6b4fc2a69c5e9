"""Rows from JSON lines, JSON, CSV, TSV, text and Parquet files.

The standard library reads all of them but Parquet: errors can then name the line, nothing is cached, so that a changed
file is always noticed, and start-up saves the second that importing `datasets` takes. Text files are UTF-8.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.data.table import Draw, Table, kind_of
from apa_cli.errors import UserError

Placed = Iterator[tuple[str, dict[str, Any]]]  # place, as in error messages, and values of each row

GZIP_MAGIC = b"\x1f\x8b"
JSON_EXAMPLE = 'write one object a line, such as {"prompt": "..."}'


def file_suffix(path: str) -> str | None:
    """The suffix that decides how `path` is read (".jsonl", ".csv", ...), without .gz; None if no reader takes it."""
    name = Path(path).name.lower().removesuffix(".gz")
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def read_files(paths: Mapping[str, str], *, source: str, prompt_column: str, draw: Draw | None = None) -> Table:
    """The rows of one file, or of several, in order.

    Error messages call each file by its key in `paths`, and all of them `source`. The only column of a text file is
    `prompt_column`. Raises UserError with the line or row at fault.
    """
    kinds = {name: file_suffix(path) for name, path in paths.items()}

    def rows() -> Placed:
        for name, path in paths.items():
            if (kind := kinds[name]) is None:
                known = f"{' '.join(READERS)}, or one of them with .gz"
                raise UserError(name, "the kind of file is not known", f"give it one of the suffixes {known}")
            try:
                yield from READERS[kind](Path(path), name, prompt_column)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                remedy = "compress it again, or drop the .gz"
                raise UserError(name, f"is not a whole gzip file ({error})", remedy) from None
            except OSError as error:
                raise UserError(name, f"cannot be read: {error.strerror or error}", "check the file") from None

    placed, count = (draw or Draw()).of(rows())
    return Table(
        source=f"{source} ({len(paths):,} files)" if len(paths) > 1 else source,
        rows=[row for _, row in placed],
        places=[place for place, _ in placed],
        count=count if count > len(placed) else None,
        padded=".parquet" in kinds.values(),
    )


def _lines(path: Path, source: str) -> Iterator[tuple[str, str]]:
    """Places and lines with their endings. Only a line feed ends a line: JSON strings may contain U+2028."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == GZIP_MAGIC
    with (gzip.open if zipped else open)(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            place = f"{source}, line {number}"
            try:
                yield place, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8 (byte 0x{error.object[error.start]:02x})"
                raise UserError(place, problem, "save the file as UTF-8") from None


def _filled(path: Path, source: str) -> Iterator[tuple[str, str]]:
    return ((place, line) for place, line in _lines(path, source) if line.strip())


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(where, f"is not JSON: {error.msg} ({place}column {error.colno})", JSON_EXAMPLE) from None
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"is not usable JSON: {error}", JSON_EXAMPLE) from None


def _read_json(path: Path, source: str, prompt_column: str) -> Placed:
    """One object a line, or an array of objects; an object over several lines is one row."""
    _, first = next(_filled(path, source), ("", ""))
    if first.lstrip().startswith("[") or first.strip() == "{":
        value = _parse_json("".join(line for _, line in _lines(path, source)), source)
        entries = enumerate(value if isinstance(value, list) else [value], start=1)
        values = ((f"{source}, entry {number}", entry) for number, entry in entries)
    else:
        values = ((place, _parse_json(line, place)) for place, line in _filled(path, source))
    for place, value in values:
        if not isinstance(value, dict):
            raise UserError(place, f"is {kind_of(value)}, not an object", JSON_EXAMPLE)
        yield place, value


def _read_text(path: Path, source: str, prompt_column: str) -> Placed:
    """One prompt a line; blank lines are skipped."""
    return ((place, {prompt_column: line.rstrip("\r\n")}) for place, line in _filled(path, source))


def _read_separated(path: Path, source: str, prompt_column: str, *, delimiter: str) -> Placed:
    """A header, then rows with the same number of fields, all strings. The header does not count as a row."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line for _, line in _lines(path, source)), delimiter=delimiter, strict=True)
    rows = (fields for fields in reader if fields)
    try:
        header = next(rows, [])
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise UserError(source, f"has two columns named {repeated[0]!r}", "rename one of them")
        for number, fields in enumerate(rows, start=1):
            if len(fields) != len(header):
                problem = f"has {len(fields)} fields, and the header {len(header)} (line {reader.line_num})"
                raise UserError(f"{source}, row {number}", problem, "put values that hold a separator in quotes")
            yield f"{source}, row {number}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}", f"is malformed: {error}", "check its quotes") from None


def _read_parquet(path: Path, source: str, prompt_column: str) -> Placed:
    """Reads with pyarrow, the engine of `datasets`, without the cache and the progress bars of `datasets`."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{source}, row {number}", row
    except (pyarrow.ArrowException, ValueError) as error:
        problem = f"is not a readable Parquet file: {' '.join(str(error).split())[:200]}"
        raise UserError(source, problem, "write it again") from None


READERS: dict[str, Callable[[Path, str, str], Placed]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": partial(_read_separated, delimiter=","),
    ".tsv": partial(_read_separated, delimiter="\t"),
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
