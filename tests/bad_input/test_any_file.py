"""Random prompt files, torn logs and damaged manifests: read as they were written, or refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apa_cli.checkpoints.manifest import MANIFEST, check_manifest, write_manifest
from apa_cli.data.files import read_files
from apa_cli.data.formats import parse_rows
from apa_cli.data.messages import ROLES
from apa_cli.data.table import Table
from apa_cli.errors import UserError
from apa_cli.tracking.lines import JsonLines, read_json_lines

often = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

words = st.text(st.characters(codec="utf-8"), max_size=20)
lines = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\ufeff"), min_size=1, max_size=20).filter(
    str.strip
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def one_line(error: UserError) -> None:
    assert str(error)
    assert "\n" not in str(error)


# Prompts


@often
@given(prompts=st.lists(lines, min_size=1, max_size=6), zipped=st.booleans())
def test_text_comes_back_as_written(tmp_path: Path, prompts: list[str], zipped: bool):
    content = "".join(f"{prompt}\n" for prompt in prompts).encode()
    path = tmp_path / ("a.txt.gz" if zipped else "a.txt")
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert read_files({"a": str(path)}, source="a", prompt_column="prompt").rows == [
        {"prompt": prompt} for prompt in prompts
    ]


@often
@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": words | st.none(), "n": st.integers(-(2**63), 2**63 - 1)}), max_size=6
    )
)
def test_parquet_comes_back_as_written(tmp_path: Path, rows: list[dict[str, Any]]):
    schema = pyarrow.schema([("prompt", pyarrow.string()), ("n", pyarrow.int64())])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), tmp_path / "a.parquet")
    assert read_files({"a": str(tmp_path / "a.parquet")}, source="a", prompt_column="prompt").rows == rows


@often
@given(damage=st.data())
def test_a_damaged_parquet_file(tmp_path: Path, damage: st.DataObject):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["one", "two"] * 20, "n": list(range(40))}), path)
    content = bytearray(path.read_bytes())
    for _ in range(damage.draw(st.integers(1, 4))):
        content[damage.draw(st.integers(0, len(content) - 1))] = damage.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        table = read_files({"a": str(path)}, source="a", prompt_column="prompt")
        assert len(table.rows) == len(table.places)
    except UserError as error:
        one_line(error)


messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES) | words, "content": words | values}) | values, max_size=3
)
turns = st.sampled_from(["\n\nHuman: ", "\n\nAssistant: ", "\n\nAssistant:", "hi", "\n", " "])
dialogues = st.lists(turns).map("".join)
cells = messages | dialogues | values


@often
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "n"]), cells), min_size=1, max_size=3
    ),
    format=st.sampled_from(["auto", "text", "chat", "hh"]),
)  # fmt: skip
def test_any_rows_are_prompts_or_refused(rows: list[dict[str, Any]], format: str):
    table = Table(source="a", rows=rows, places=[f"row {number}" for number in range(1, len(rows) + 1)])
    try:
        found, parsed = parse_rows(table, format=format, prompt_column="prompt")
    except UserError as error:
        one_line(error)
        return
    assert len(parsed) == len(rows)
    for row, given_row in zip(parsed, rows, strict=True):
        assert row.text.strip()
        if found == "hh":
            assert given_row["chosen"].startswith(row.text)
            assert row.text.endswith("\n\nAssistant:")
        if found == "text":
            assert row.text == given_row["prompt"]
        if found == "chat":
            assert row.messages is not None
            assert row.messages[-1]["role"] == "user"


# metrics.jsonl, torn anywhere


@often
@given(
    records=st.lists(st.dictionaries(words.filter(lambda name: name != "iteration"), values, max_size=3), max_size=6),
    cut=st.integers(0, 400),
    start=st.integers(0, 7),
)
def test_a_torn_log_loses_no_whole_line(tmp_path: Path, records: list[dict[str, Any]], cut: int, start: int):
    path = tmp_path / "metrics.jsonl"
    written = [{"iteration": number, **record} for number, record in enumerate(records, start=1)]
    whole = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in written).encode()
    torn = whole[: min(cut, len(whole))]
    path.write_bytes(torn)
    complete = written[: torn.count(b"\n")]
    found = read_json_lines(path)
    if len(found) > len(complete):  # the cut took nothing but the end of the line
        complete = written[: len(complete) + 1]
        assert whole[len(torn) : len(torn) + 1] == b"\n"
    assert found == complete
    log = JsonLines(path, start_iteration=start)
    log.add({"iteration": start + 1})
    assert read_json_lines(path) == [*(r for r in complete if r["iteration"] <= start), {"iteration": start + 1}]
    assert path.read_bytes().endswith(b"\n")


# The manifest of a checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (tmp_path / "secret").write_bytes(FILES["policy/a"])
    write_manifest(folder)
    return folder


FILES = {"policy/a": b"weights", "value/b": b"", "trainer_state/c.json": b"{}"}
names = st.sampled_from(["../secret", "policy/../../secret", "policy", "", ".", "x" * 300, "a\0b", "nope"]) | words


def refused(folder: Path) -> bool:
    try:
        check_manifest(folder, "checkpoint")
    except UserError as error:
        one_line(error)
        return True
    return False


def restore(folder: Path) -> dict[str, Any]:
    """The fixture is made once a test, not once an example."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in FILES:
            path.unlink()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    write_manifest(folder)
    assert not refused(folder)
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


@often
@given(change=st.data())
def test_a_changed_manifest_is_refused(checkpoint: Path, change: st.DataObject):
    manifest = restore(checkpoint)
    files = manifest["files"]
    name = change.draw(st.sampled_from(sorted(FILES)))
    kind = change.draw(st.sampled_from(["renamed", "size", "digest", "entry", "files", "added"]))
    if kind == "renamed":
        files[change.draw(names.filter(lambda other: other not in FILES))] = files.pop(name)
    elif kind == "size":
        size = files[name]["bytes"]
        files[name]["bytes"] = change.draw(
            values.filter(lambda v: not (isinstance(v, (int, float, bool)) and int(v) == size) and str(v) != str(size))
        )
    elif kind == "digest":
        files[name]["sha256"] = change.draw(values)
    elif kind == "entry":
        files[name] = change.draw(values)
    elif kind == "files":
        manifest["files"] = change.draw(values)
    else:
        files[change.draw(names.filter(lambda other: other not in FILES))] = dict(files[name])
    (checkpoint / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert refused(checkpoint), manifest
