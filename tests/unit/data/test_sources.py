"""Where data.path leads, and what a wrong one says."""

import datasets
import pytest

from apa_cli.assets.resolve import builtin_names, resolve_path
from apa_cli.data.sources import read_source
from apa_cli.errors import UserError


def read(path, **settings):
    defaults = {"key": "data.path", "subset": None, "split": "train", "split_key": "data.split"}
    return read_source(str(path), prompt_column="prompt", **{**defaults, **settings})


def message_of(path, **settings):
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    return tmp_path


def test_a_file_by_relative_path_and_by_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert read("data/prompts.jsonl").rows == [{"prompt": "a"}]
    assert read("~/data/prompts.jsonl").source == "~/data/prompts.jsonl"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/promts.jsonl", "data.path: there is no file data/promts.jsonl; did you mean data/prompts.jsonl?"),
        ("dat/prompts.jsonl", "data.path: there is no file dat/prompts.jsonl; did you mean data?"),
        ("data/prompts.csv.gz", "did you mean data/prompts.jsonl?"),
        ("zzz/qqq.jsonl", "check the path (the current folder is"),
        ("/data/x/y/zzz", "there is no file /data/x/y/zzz"),
        ("data", "data.path: data is a folder; name a file in it, such as data/prompts.jsonl"),
        ("model.pkl", "data.path: model.pkl is not a kind of file that is read; use .jsonl"),
        ("", "data.path: there is no file"),
    ],
)
def test_paths_that_lead_nowhere(folder, path, expected):
    assert expected in message_of(path)


def test_a_file_of_unknown_kind(folder):
    (folder / "prompts.pkl").write_bytes(b"\x80\x04K\x01.")
    (folder / "prompts").write_text("a")
    assert message_of("prompts.pkl").startswith("prompts.pkl: the kind of file is not known; give it one of")
    assert message_of("prompts").startswith("prompts: the kind of file is not known")


def test_a_file_without_rows(folder):
    (folder / "a.csv").write_text("prompt\n")
    assert message_of("a.csv") == "a.csv: holds no prompts; give it at least one row"


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
    assert table.place(1) == "org/some.name, row 2"
    assert table.commit == "c" * 40
    assert calls == [("org/some.name", {"name": "small", "split": "test", "revision": "v1"})]
    assert datasets.are_progress_bars_disabled() == bars


HUB_ERRORS = [
    (ValueError("Unknown split \"tst\". Should be one of ['train']."), "data.split: org/x has no split 'train'"),
    (
        ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']"),
        "data.subset: org/x has several subsets",
    ),
    (ValueError("BuilderConfig 'c' not found. Available: ['a']"), "data.subset: "),
    (ConnectionError("Couldn't reach 'org/x' on the Hub (OfflineModeIsEnabled)"), "the Hub cannot be reached"),
    (datasets.exceptions.DatasetNotFoundError("Dataset 'org/x' is a gated dataset on the Hub."), "org/x is gated"),
    (datasets.exceptions.DatasetNotFoundError("Dataset 'org/x' doesn't exist"), "neither a file here nor a data set"),
    (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "org/x cannot be loaded: RuntimeError"),
]


@pytest.mark.parametrize(("error", "expected"), HUB_ERRORS)
def test_hub_errors_are_one_line(folder, monkeypatch, error, expected):
    def fail(path, **settings):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert expected in message_of("org/x")


def test_the_hub_is_not_reached_offline(folder, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the Hub cannot be reached" in message_of("no-such-org/no-such-set")


@pytest.mark.parametrize("name", ["json", "csv", "pandas", "imagefolder"])
def test_a_reader_of_datasets_is_not_a_data_set(folder, name):
    assert f"'{name}' is a reader" in message_of(name)


def test_resolve_leaves_other_paths_alone():
    assert [resolve_path(path) for path in ("a/b", "org/name", "")] == ["a/b", "org/name", ""]


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
    with pytest.raises(UserError) as caught:
        resolve_path(path)
    assert str(caught.value).startswith(f"{path}: nothing built in has this name; did you mean {nearest}")
