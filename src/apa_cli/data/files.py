"""Prompt files to rows: JSON lines, JSON, CSV, TSV, text and Parquet.

All but Parquet are read by the standard library: an error can then name the line, nothing is cached, a changed file is
always noticed, and start-up does not pay for importing `datasets` (about a second). Text files are UTF-8.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from apa_cli.data.table import Draw, Table, kind_of
from apa_cli.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
WITH_HEADER = (".csv", ".tsv", ".parquet")
JSON_EXAMPLE = 'write one object a line, such as {"prompt": "..."}'


def file_suffix(path: str) -> str | None:
    """The suffix that decides how `path` is read (".jsonl", ".csv.gz", ...), or None when it cannot be."""
    name = Path(path).name.lower()
    return max((suffix for suffix in READERS if name.endswith(suffix)), key=len, default=None)


def known_suffixes() -> str:
    plain = [suffix for suffix in READERS if not suffix.endswith(".gz")]
    return f"{' '.join(plain)} (all but .parquet also with .gz)"


def read_file(path: str, *, source: str, prompt_column: str) -> Table:
    """All rows of a file; see `read_files`."""
    return read_files({source: path}, source=source, prompt_column=prompt_column)


def read_files(paths: Mapping[str, str], *, source: str, prompt_column: str, draw: Draw | None = None) -> Table:
    """The rows of one file, or of several of a kind, one after the other.

    `paths` by their names in errors, `source` the name of them all; `prompt_column` is what a text file's only column
    is called. Raises UserError, with the line or row where there is one, for whatever is wrong with a file.
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


Labelled = Iterator[tuple[str, dict[str, Any]]]


def _lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Lines with their endings, numbered from 1. Only a line feed ends one: JSON strings may hold U+2028 and such."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == GZIP_MAGIC
    if zipped and path.suffix.lower() != ".gz":
        raise UserError(source, "is compressed with gzip", "add .gz to its name")
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as stream:
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


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(where, f"is {kind_of(value)}, not an object", JSON_EXAMPLE)
    return value


def _json_row(line: str, source: str, number: int) -> tuple[str, dict[str, Any]]:
    where = f"{source}, line {number}"
    return f"line {number}", _object(_parse_json(line, where), where)


def _read_jsonl(path: Path, source: str, prompt_column: str) -> Labelled:
    first = True
    for number, line in _lines(path, source):
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            raise UserError(source, "holds a JSON array", "name it .json, or write one object a line")
        first = False
        yield _json_row(line, source, number)


def _read_json(path: Path, source: str, prompt_column: str) -> Labelled:
    """An array of objects, a single object, or, as many .json files are, an object a line."""
    lines = [line for _, line in _lines(path, source)]
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        return
    if len(filled) > 1 and _is_object(filled[0][1]):
        for number, line in filled:
            yield _json_row(line, source, number)
        return
    value = _parse_json("".join(lines), source)
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"entry {number}", _object(row, f"{source}, entry {number}")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_text(path: Path, source: str, prompt_column: str) -> Labelled:
    """One prompt a line; blank lines are passed over."""
    for number, line in _lines(path, source):
        if line.strip():
            yield f"line {number}", {prompt_column: line.rstrip("\r\n")}


def _read_separated(path: Path, source: str, delimiter: str) -> Labelled:
    """A header, then rows of as many fields; every value is a string. Rows are counted without the header."""
    csv.field_size_limit(2**31 - 1)
    lines = (line for _, line in _lines(path, source))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next((fields for fields in reader if fields), [])
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise UserError(source, f"has two columns named {repeated[0]!r}", "rename one of them")
        if len(header) == 1 and (
            other := next((mark for mark in ",;\t|" if mark != delimiter and mark in header[0]), None)
        ):
            raise UserError(
                source, f"separates its columns by {other!r}, not {delimiter!r}", "use commas, or tabs in .tsv"
            )
        for number, fields in enumerate((fields for fields in reader if fields), start=1):
            if len(fields) != len(header):
                problem = f"has {len(fields)} fields, and the header {len(header)} (line {reader.line_num})"
                raise UserError(f"{source}, row {number}", problem, "put values that hold a separator in quotes")
            yield f"row {number}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}", f"is malformed: {error}", "check its quotes") from None


def _read_csv(path: Path, source: str, prompt_column: str) -> Labelled:
    return _read_separated(path, source, ",")


def _read_tsv(path: Path, source: str, prompt_column: str) -> Labelled:
    return _read_separated(path, source, "\t")


def _read_parquet(path: Path, source: str, prompt_column: str) -> Labelled:
    """Read by pyarrow, the engine of `datasets`, without its cache and its progress bars."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, ValueError) as error:
        problem = f"is not a readable Parquet file: {' '.join(str(error).split())[:200]}"
        raise UserError(source, problem, "write it again") from None


READERS: dict[str, Callable[[Path, str, str], Labelled]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_text,
}
READERS.update({f"{suffix}.gz": reader for suffix, reader in READERS.items()})
READERS[".parquet"] = _read_parquet
