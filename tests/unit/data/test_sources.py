"""Where data.path leads, and what a wrong one says."""

import gzip
import json
from collections import Counter

import datasets
import pytest
from refused import refusal

from apa_cli.assets.resolve import builtin_names, resolve_path
from apa_cli.config.schema import DataConfig
from apa_cli.data.formats import parse_rows
from apa_cli.data.sources import read_source


def read(path, seed=0, **settings):
    return read_source(DataConfig(path=str(path), **settings), seed=seed)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    for name in ("two/test.jsonl", "two/train.csv", "none/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("prompt\na\n")
    return tmp_path


def test_a_file_by_relative_path_and_by_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert read("data/prompts.jsonl").rows == [{"prompt": "a"}]
    assert read("~/data/prompts.jsonl").source == "~/data/prompts.jsonl"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/promts.jsonl", "data.path: there is no file data/promts.jsonl; did you mean data/prompts.jsonl?"),
        ("data/prompts.csv.gz", "did you mean data/prompts.jsonl?"),
        ("zzz/qqq.jsonl", "check the path (the current folder is"),
        ("two", "data.path: two is a folder without the parts of one set; name a file, or several: 'two/*.jsonl'"),
        ("none", "data.path: none is a folder without the parts of one set; name a file, or several: 'none/FILE'"),
        ("data/*.csv", "data.path: no file is named data/*.csv; check the pattern"),
    ],
)
def test_paths_that_lead_nowhere(folder, path, expected):
    assert expected in refusal(read, path)


def test_a_hub_data_set(folder, monkeypatch):
    calls = []

    def load(path, **settings):
        calls.append((path, settings))
        data = datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
        data.info.download_checksums = {f"hf://datasets/org/some.name@{'c' * 40}/a.parquet": {"num_bytes": 1}}
        return data

    monkeypatch.setattr(datasets, "load_dataset", load)
    bars = datasets.are_progress_bars_disabled()
    table = read("org/some.name", subset="small", split="test", revision="v1")
    assert table.rows == [{"prompt": "a"}, {"prompt": "b"}]
    assert table.places[1] == "org/some.name, row 2"
    assert table.commit == "c" * 40
    assert calls == [("org/some.name", {"name": "small", "split": "test", "revision": "v1"})]
    assert datasets.are_progress_bars_disabled() == bars


ROWS = [{"prompt": f"p{number}"} for number in range(6)]
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_what_save_to_disk_wrote(folder):
    data = datasets.Dataset.from_list(ROWS)
    data.with_format("numpy").select([5, 0, 3]).save_to_disk("saved")
    datasets.DatasetDict(train=data, test=data.select(range(2))).save_to_disk("splits")
    assert [row["prompt"] for row in read("saved").rows] == ["p5", "p0", "p3"]
    assert read("splits", split="test").rows == ROWS[:2]
    assert read("splits").places[5] == "splits, row 6"
    assert refusal(read, "splits", split="tset") == (
        "data.split: splits has no split 'tset' (it has train, test); set data.split"
    )
    for arrow in (folder / "saved").glob("*.arrow"):
        arrow.unlink()
    assert refusal(read, "saved").startswith("saved: is not a whole data set of save_to_disk (FileNotFoundError")


@pytest.mark.parametrize(("path", "names"), [("parts", "parts/p-{}.jsonl"), ("parts/p-*", "parts/p-{}.jsonl")])
def test_shards_are_one_set_and_places_name_the_file(folder, path, names):
    (folder / "parts").mkdir()
    (folder / "parts" / ".p.jsonl").write_text("no shard")
    (folder / "parts" / "p-01.jsonl").write_text(lines(ROWS[3:]))
    (folder / "parts" / "p-00.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[:3]).encode()))
    if path == "parts":  # .gz is another name than without
        (folder / "parts" / "p-00.jsonl").write_text(lines(ROWS[:3]))
        (folder / "parts" / "p-00.jsonl.gz").unlink()
    table = read(path)
    assert (table.rows, table.source) == (ROWS, f"{path} (2 files)")
    assert table.places[3] == f"{names.format('01')}, line 1"
    (folder / "parts" / "p-01.jsonl").write_text("{,}\n")
    assert refusal(read, path).startswith(f"{names.format('01')}, line 1: is not JSON")


@pytest.mark.parametrize("kind", ["saved", "a.jsonl", "a.parquet"])
def test_of_a_larger_data_set_rows_are_drawn_by_seed(folder, kind):
    rows = [{"prompt": f"p{number}"} for number in range(300)]
    data = datasets.Dataset.from_list(rows)
    if kind == "saved":
        data.save_to_disk(kind)
    else:
        (data.to_parquet if kind.endswith("parquet") else data.to_json)(kind)
    draws = [read(kind, max_rows=100, seed=seed) for seed in range(30)]
    numbers = [[int(row["prompt"][1:]) for row in table.rows] for table in draws]
    assert all(len(set(drawn)) == 100 and drawn == sorted(drawn) for drawn in numbers)
    assert {table.count for table in draws} == {300}
    assert draws[0].places[7].endswith(f" {numbers[0][7] + 1}")
    often = Counter(number for drawn in numbers for number in drawn)  # 10 of 30 times on average
    assert 100 * 30 / 3 * 0.9 < sum(often[number] for number in range(100)) < 100 * 30 / 3 * 1.1
    assert read(kind, max_rows=100, seed=3).rows == draws[3].rows != draws[4].rows
    whole = read(kind, max_rows=300, seed=3)
    assert (whole.rows, whole.count) == (rows, None)


def test_records_of_a_table_hold_no_fields_of_other_rows(folder):
    other = {"role": "user", "content": "b", "tool_calls": [{"name": "g", "arguments": {"z": 1}}]}
    turns = [{"role": "user", "content": "a"}, CALLING, {"role": "tool", "content": "c"}]
    datasets.Dataset.from_list([{"prompt": turns}, {"prompt": [other, turns[0]]}]).save_to_disk("saved")
    _, rows = parse_rows(read("saved"), format="auto", prompt_column="prompt")
    assert rows[0].messages == (turns[0], CALLING, turns[2])


HUB_ERRORS = [
    (ValueError("Unknown split \"tst\". Should be one of ['train']."), "data.split: org/x has no split 'train'"),
    (
        ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']"),
        "data.subset: org/x has several subsets",
    ),
    (ValueError("BuilderConfig 'c' not found. Available: ['a']"), "data.subset: "),
    (ConnectionError("Couldn't reach 'org/x' on the Hub (OfflineModeIsEnabled)"), "the Hub cannot be reached"),
    (datasets.exceptions.DatasetNotFoundError("Dataset 'org/x' doesn't exist"), "neither a file here nor a data set"),
    (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "org/x cannot be loaded: RuntimeError"),
]


@pytest.mark.parametrize(("error", "expected"), HUB_ERRORS)
def test_hub_errors_are_one_line(folder, monkeypatch, error, expected):
    def fail(path, **settings):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert expected in refusal(read, "org/x")


@pytest.mark.parametrize("name", ["json", "csv", "pandas", "imagefolder"])
def test_a_reader_of_datasets_is_not_a_data_set(folder, name):
    assert f"'{name}' is a reader" in refusal(read, name)


def make_package(tmp_path, monkeypatch):
    for name in ("reviews/prompts.jsonl", "reviews/policy/config.json", "grammar.py", "__pycache__/grammar.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"prompt": "built in"}')
    monkeypatch.setattr("apa_cli.assets.resolve.files", lambda package: tmp_path)


def test_builtin_names(tmp_path, monkeypatch):
    make_package(tmp_path, monkeypatch)
    names = ["reviews", "reviews/policy", "reviews/policy/config.json", "reviews/prompts.jsonl"]
    assert builtin_names() == names
    assert resolve_path("builtin:reviews/policy") == str(tmp_path / "reviews" / "policy")
    assert read("builtin:reviews/prompts.jsonl").rows == [{"prompt": "built in"}]


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("builtin:review/prompts.jsonl", "builtin:reviews/prompts.jsonl"),
        ("builtin:reviews/polcy", "builtin:reviews/policy"),
        ("builtin:", "builtin:reviews"),
        ("builtin:../secret", "builtin:reviews"),
        ("builtin:grammar.py", "builtin:reviews"),
    ],
)
def test_unknown_builtin_names_the_nearest(tmp_path, monkeypatch, path, nearest):
    make_package(tmp_path, monkeypatch)
    line = refusal(resolve_path, path)
    assert line.startswith(f"{path}: nothing built in has this name; did you mean {nearest}")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    from huggingface_hub import constants

    from apa_cli.data.hub import use_cache_if_unreachable

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    use_cache_if_unreachable.cache_clear()
    try:
        use_cache_if_unreachable()
        assert constants.HF_HUB_OFFLINE
    finally:
        use_cache_if_unreachable.cache_clear()
