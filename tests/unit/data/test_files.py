"""Every kind of file gives the rows that were written to it, and every broken file one clear line."""

import csv
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refused import refusal

from apa_cli.data.files import read_files
from apa_cli.errors import UserError


def read(path, source="prompts", column="prompt"):
    return read_files({source: str(path)}, source=source, prompt_column=column)


def write(path, content):
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


KINDS = {
    "a.jsonl": '{"prompt": "one", "n": 1}\n\n{"prompt": "zwölf", "n": 12}\n',
    "a.json": '[{"prompt": "one", "n": 1},\n {"prompt": "zwölf", "n": 12}]',
    "array.jsonl": '[{"prompt": "one", "n": 1},\n {"prompt": "zwölf", "n": 12}]',
    "lines.json": '{"prompt": "one", "n": 1}\n{"prompt": "zwölf", "n": 12}\n',
    "a.csv": 'prompt,n\r\none,1\r\n"zwölf",12\r\n',
    "a.tsv": "prompt\tn\none\t1\nzwölf\t12\n",
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read(tmp_path, name, suffix):
    table = read(write(tmp_path / (name + suffix), KINDS[name]))
    numbers = ["1", "12"] if name.endswith((".csv", ".tsv")) else [1, 12]
    assert table.rows == [{"prompt": "one", "n": numbers[0]}, {"prompt": "zwölf", "n": numbers[1]}]


def test_gzip_is_noticed_without_its_suffix(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(b'{"prompt": "one"}'))
    assert read(path).rows == [{"prompt": "one"}]


def test_capital_suffix_and_byte_order_mark(tmp_path):
    assert read(write(tmp_path / "A.JSONL", b'\xef\xbb\xbf{"prompt": "one"}')).rows == [{"prompt": "one"}]
    assert read(write(tmp_path / "A.CSV", b"\xef\xbb\xbfprompt\none\n")).rows == [{"prompt": "one"}]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_has_one_prompt_a_line_under_the_prompt_column(tmp_path, suffix):
    table = read(write(tmp_path / f"a.txt{suffix}", "one\r\n\n  two \n"), column="question")
    assert table.rows == [{"question": "one"}, {"question": "  two "}]
    assert table.places == ["prompts, line 1", "prompts, line 3"]


def test_parquet_with_messages(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}], "n": 1}, {"messages": None, "n": 2}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet")
    assert table.rows == rows
    assert table.places[1] == "prompts, row 2"


def test_quoted_csv_may_hold_commas_and_line_ends(tmp_path):
    table = read(write(tmp_path / "a.csv", 'prompt,n\n"a, ""b""\nc",1\nd,2\n'))
    assert table.rows == [{"prompt": 'a, "b"\nc', "n": "1"}, {"prompt": "d", "n": "2"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_files_have_no_rows(tmp_path, name, content):
    assert read(write(tmp_path / name, content)).rows == []


BROKEN = [
    ("a.jsonl", '{"prompt": "a"}\n["b"]\n', ["prompts, line 2", "is a list, not an object"]),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9t\xe9"}\n', ["prompts, line 2", "not UTF-8 (byte 0xe9)", "UTF-8"]),
    ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), ["prompts, line 1", "not UTF-8"]),
    ("a.json", '[{"prompt": "a"},\n {"prompt": ]', ["prompts", "not JSON", "line 2, column 13"]),
    ("a.json", '[{"prompt": "a"}, 3]', ["prompts, entry 2", "is a number, not an object"]),
    ("lines.json", '{"prompt": "a"}\n{"prompt": \n', ["prompts, line 2", "not JSON"]),
    ("a.csv", "prompt,prompt\na,b\n", ["prompts", "two columns named 'prompt'"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BROKEN)
def test_a_broken_file_is_one_clear_line(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(read, path)
    assert [part for part in parts if part not in message] == [], message


words = st.text(st.characters(codec="utf-8"), max_size=30)
rows_of_json = st.lists(
    st.dictionaries(words, words | st.integers() | st.none() | st.lists(words, max_size=2)), max_size=6
)
every_example = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@every_example
@given(rows=rows_of_json, escape=st.booleans(), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_json_lines_come_back_as_written(tmp_path, rows, escape, suffix):
    content = "".join(json.dumps(row, ensure_ascii=escape) + "\n" for row in rows)
    table = read(write(tmp_path / f"a{suffix}", content))
    assert table.rows == rows
    assert table.places == [f"prompts, line {number + 1}" for number in range(len(rows))]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)


@every_example
@given(
    rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=6), kind=st.sampled_from([".csv", ".tsv", ".csv.gz"])
)
def test_separated_values_come_back_as_written(tmp_path, rows, kind):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t" if kind == ".tsv" else ",", quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "extra"), *rows])
    table = read(write(tmp_path / f"a{kind}", buffer.getvalue()))
    assert table.rows == [{"prompt": first, "extra": second} for first, second in rows]


@every_example
@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.csv.gz"]),
)
def test_any_bytes_give_rows_or_one_line(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    message = ""
    try:
        table = read(tmp_path / name)
        assert len(table.rows) == len(table.places)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
