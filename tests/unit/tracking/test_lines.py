"""What the disk refuses is written later: in order, whole, once. Lines are JSON, and a resumed run repeats none."""

import errno
import math
import os

import numpy as np
import pytest

from apa_cli.errors import UserError
from apa_cli.tracking.lines import DiskTrouble, JsonLines, PatientFile
from apa_cli.tracking.metrics import read_metrics

REAL_WRITE = os.write


class Disk:
    """Stands before os.write: takes `room` bytes, then refuses with `error`."""

    def __init__(self, monkeypatch):
        self.room, self.error = None, errno.ENOSPC
        monkeypatch.setattr("apa_cli.tracking.lines.os.write", self.write)

    def write(self, file, data):
        if self.room is None:
            return REAL_WRITE(file, data)
        if self.room == 0:
            raise OSError(self.error, os.strerror(self.error))
        count = REAL_WRITE(file, bytes(data)[: self.room])
        self.room -= count
        return count


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines"


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("room", range(8))
def test_a_line_torn_anywhere_is_completed(disk, path, error, room):
    said = []
    file = PatientFile(path, DiskTrouble(said.append))
    file.write(b"first\n")
    disk.room, disk.error = room, error
    assert file.write(b"second\n") == (room == 7)
    file.write(b"third\n")
    assert path.read_bytes() == b"first\n" + b"second\nthird\n"[:room]
    assert file.pending == b"second\nthird\n"[room:]
    assert file.problem.errno == error
    assert len(said) == 1
    assert os.strerror(error) in said[0]
    disk.room = None
    assert file.write(b"fourth\n")
    assert path.read_bytes() == b"first\nsecond\nthird\nfourth\n"
    assert file.pending == b""
    assert [("again" in line) for line in said] == [False, True]


def test_bytes_that_a_failed_write_left_behind_are_not_doubled(disk, path, monkeypatch):
    def write_and_fail(descriptor, data):
        REAL_WRITE(descriptor, bytes(data)[:3])
        raise OSError(errno.EIO, "went wrong after three bytes")

    file = PatientFile(path, DiskTrouble(lambda _: None))
    monkeypatch.setattr("apa_cli.tracking.lines.os.write", write_and_fail)
    file.write(b"line\n")
    assert path.read_bytes() == b"lin"
    monkeypatch.setattr("apa_cli.tracking.lines.os.write", REAL_WRITE)
    file.write(b"next\n")
    assert path.read_bytes() == b"line\nnext\n"


def test_one_warning_for_all_files_of_a_disk(disk, tmp_path):
    said = []
    trouble = DiskTrouble(said.append)
    files = [PatientFile(tmp_path / name, trouble) for name in "abc"]
    disk.room = 0
    for file in [*files, *files]:
        file.write(b"x\n")
    assert len(said) == 1
    disk.room = None
    for file in files:
        file.write(b"y\n")
    assert len(said) == 2
    assert [file.path.read_bytes() for file in files] == [b"x\nx\ny\n"] * 3
    disk.room = 0
    files[0].write(b"z\n")
    assert len(said) == 3


def test_a_failed_fsync_is_trouble_too(path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    said = []
    file = PatientFile(path, DiskTrouble(said.append))
    file.write(b"x\n")
    monkeypatch.setattr("apa_cli.tracking.lines.os.fsync", fail)
    assert not file.write(sync=True)
    assert len(said) == 1
    monkeypatch.undo()
    assert file.write(b"y\n", sync=True)
    assert path.read_bytes() == b"x\ny\n"
    assert len(said) == 2


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, "null"),
        (-math.inf, "null"),
        (np.float32("nan"), "null"),
        (np.float32(0.5), "0.5"),
        (np.int64(2), "2.0"),
        (12_345_678_901, "12345678901"),
        ("line\nbreak \u2028 \udc80 “ü”", '"line\\nbreak \u2028 \\udc80 “ü”"'),
    ],
)
def test_a_line_is_json_and_on_the_disk_at_once(path, value, written):
    JsonLines(path).add({"iteration": 1, "it": value})
    assert path.read_text("utf-8") == f'{{"iteration": 1, "it": {written}}}\n'


def write(path, iterations, **kwargs):
    JsonLines(path, **kwargs).add(*({"iteration": iteration} for iteration in iterations))


def test_a_run_from_the_start_begins_an_empty_file(tmp_path):
    write(tmp_path / "metrics.jsonl", range(6))
    write(tmp_path / "metrics.jsonl", [0, 1])
    assert len(read_metrics(tmp_path)) == 2  # a folder stands for its file
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("damage", ["broken", "[]", '{"iteration": null}', "{}"])
def test_damage_before_the_last_line_is_an_error(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"iteration": 1}}\n{damage}\n{{"iteration": 2}}\n')
    with pytest.raises(UserError, match="line 2: not JSON" if damage == "broken" else "no number as its iteration"):
        JsonLines(path, start_iteration=1)
