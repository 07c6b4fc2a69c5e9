"""Rows from JSON lines, JSON, CSV, TSV, text and Parquet files.

The standard library reads all of them but Parquet: errors can then name the line, nothing is cached, so that a changed
file is always noticed, and start-up saves the second that importing `datasets` takes. Text files are UTF-8.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.data.table import Draw, Table, kind_of
from apa_cli.errors import UserError

Labelled = Iterator[tuple[str, dict[str, Any]]]  # label and values of each row

GZIP_MAGIC = b"\x1f\x8b"
WITH_HEADER = (".csv", ".tsv", ".parquet")
JSON_EXAMPLE = 'write one object a line, such as {"prompt": "..."}'


def file_suffix(path: str) -> str | None:
    """The suffix that decides how `path` is read (".jsonl", ".csv.gz", ...); None if no reader takes it."""
    name = Path(path).name.lower()
    return max((suffix for suffix in READERS if name.endswith(suffix)), key=len, default=None)


def known_suffixes() -> str:
    plain = [suffix for suffix in READERS if not suffix.endswith(".gz")]
    return f"{' '.join(plain)} (all but .parquet also with .gz)"


def read_files(paths: Mapping[str, str], *, source: str, prompt_column: str, draw: Draw | None = None) -> Table:
    """The rows of one file, or of several files of one kind, in order.

    Error messages call each file by its key in `paths`, and all of them `source`. The only column of a text file is
    `prompt_column`. Raises UserError with the line or row at fault.
    """
    several = list(paths) != [source]
    kinds = {name: (file_suffix(path) or "").removesuffix(".gz") for name, path in paths.items()}
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if not kind:
            raise UserError(name, "the kind of file is not known", f"give it one of the suffixes {known_suffixes()}")
        if kind != kinds[first]:
            raise UserError(source, f"names files of two kinds, {first} and {name}", "name those of one kind")

    def rows() -> Labelled:
        columns: list[str] | None = None
        for name, path in paths.items():
            own: list[str] | None = None
            for label, row in _rows(path, name, prompt_column):
                if own is None:
                    own = list(row)
                    if columns is not None and kinds[name] in WITH_HEADER and set(own) != set(columns):
                        problem = f"has the columns {', '.join(own)}, and {first} has {', '.join(columns)}"
                        raise UserError(name, problem, "name files with the same columns")
                    columns = columns or own
                yield f"{name}, {label}" if several else label, row

    labelled, count = (draw or Draw()).of(rows())
    return Table(
        source=f"{source} ({len(paths):,} files)" if len(paths) > 1 else source,
        rows=[row for _, row in labelled],
        labels=[label for label, _ in labelled],
        several=several,
        count=count if count > len(labelled) else None,
        padded=kinds[first] == ".parquet",
    )


def _rows(path: str, source: str, prompt_column: str) -> Labelled:
    try:
        yield from READERS[file_suffix(path) or ""](Path(path), source, prompt_column)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(source, f"is not a whole gzip file ({error})", "compress it again, or drop the .gz") from None
    except OSError as error:
        raise UserError(source, f"cannot be read: {error.strerror or error}", "check the file") from None


def _lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Lines with their endings, numbered from 1. Only a line feed ends a line: JSON strings may contain U+2028."""
    zipped = path.suffix.lower() == ".gz"
    with open(path, "rb") as raw:
        if raw.read(2) == GZIP_MAGIC and not zipped:
            raise UserError(source, "is compressed with gzip", "add .gz to its name")
    with (gzip.open if zipped else open)(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8 (byte 0x{error.object[error.start]:02x})"
                raise UserError(f"{source}, line {number}", problem, "save the file as UTF-8") from None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(where, f"is not JSON: {error.msg} ({place}column {error.colno})", JSON_EXAMPLE) from None
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"is not usable JSON: {error}", JSON_EXAMPLE) from None


def _objects(values: Iterable[tuple[str, Any]], source: str) -> Labelled:
    for label, value in values:
        if not isinstance(value, dict):
            raise UserError(f"{source}, {label}", f"is {kind_of(value)}, not an object", JSON_EXAMPLE)
        yield label, value


def _json_lines(lines: Iterable[tuple[int, str]], source: str) -> Labelled:
    filled = ((f"line {number}", line) for number, line in lines if line.strip())
    return _objects(((label, _parse_json(line, f"{source}, {label}")) for label, line in filled), source)


def _read_jsonl(path: Path, source: str, prompt_column: str) -> Labelled:
    first = next((line for _, line in _lines(path, source) if line.strip()), "")
    if first.lstrip().startswith("["):
        raise UserError(source, "holds a JSON array", "name it .json, or write one object a line")
    return _json_lines(_lines(path, source), source)


def _read_json(path: Path, source: str, prompt_column: str) -> Labelled:
    """An array of objects, a single object, or, as in many .json files, one object a line."""
    lines = list(_lines(path, source))
    filled = [line for _, line in lines if line.strip()]
    if not filled:
        return iter(())
    try:
        by_line = len(filled) > 1 and isinstance(json.loads(filled[0]), dict)
    except (ValueError, RecursionError):
        by_line = False
    if by_line:
        return _json_lines(lines, source)
    value = _parse_json("".join(line for _, line in lines), source)
    entries = enumerate(value if isinstance(value, list) else [value], start=1)
    return _objects(((f"entry {number}", entry) for number, entry in entries), source)


def _read_text(path: Path, source: str, prompt_column: str) -> Labelled:
    """One prompt a line; blank lines are skipped."""
    for number, line in _lines(path, source):
        if line.strip():
            yield f"line {number}", {prompt_column: line.rstrip("\r\n")}


def _read_separated(path: Path, source: str, prompt_column: str, *, delimiter: str) -> Labelled:
    """A header, then rows with the same number of fields, all strings. The header does not count as a row."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line for _, line in _lines(path, source)), delimiter=delimiter, strict=True)
    try:
        header = next((fields for fields in reader if fields), [])
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise UserError(source, f"has two columns named {repeated[0]!r}", "rename one of them")
        others = [mark for mark in ",;\t|" if mark != delimiter and len(header) == 1 and mark in header[0]]
        if others:
            problem = f"separates its columns by {others[0]!r}, not {delimiter!r}"
            raise UserError(source, problem, "use commas, or tabs in .tsv")
        for number, fields in enumerate((fields for fields in reader if fields), start=1):
            if len(fields) != len(header):
                problem = f"has {len(fields)} fields, and the header {len(header)} (line {reader.line_num})"
                raise UserError(f"{source}, row {number}", problem, "put values that hold a separator in quotes")
            yield f"row {number}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}", f"is malformed: {error}", "check its quotes") from None


def _read_parquet(path: Path, source: str, prompt_column: str) -> Labelled:
    """Reads with pyarrow, the engine of `datasets`, without the cache and the progress bars of `datasets`."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", row
    except (pyarrow.ArrowException, ValueError) as error:
        problem = f"is not a readable Parquet file: {' '.join(str(error).split())[:200]}"
        raise UserError(source, problem, "write it again") from None


READERS: dict[str, Callable[[Path, str, str], Labelled]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": partial(_read_separated, delimiter=","),
    ".tsv": partial(_read_separated, delimiter="\t"),
    ".txt": _read_text,
}
READERS.update({f"{suffix}.gz": reader for suffix, reader in READERS.items()})
READERS[".parquet"] = _read_parquet
