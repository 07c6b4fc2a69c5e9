"""What the disk refuses is written later: in order, whole, once."""

import errno
import os

import pytest

from apa_cli.tracking.patient_file import DiskTrouble, PatientFile

REAL_WRITE = os.write


class Disk:
    """Stands before os.write: takes `room` bytes, then refuses with `error`."""

    def __init__(self, monkeypatch, path):
        self.room, self.error, self.path = None, errno.ENOSPC, path
        monkeypatch.setattr("apa_cli.tracking.patient_file.os.write", self.write)

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
def disk(monkeypatch, path):
    return Disk(monkeypatch, path)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE])
@pytest.mark.parametrize("room", range(8))
def test_a_line_torn_anywhere_is_completed(disk, path, error, room):
    said = []
    file = PatientFile(path, DiskTrouble(said.append))
    file.write(b"first\n")
    disk.room, disk.error = room, error
    file.write(b"second\n")
    file.write(b"third\n")
    assert path.read_bytes() == b"first\n" + b"second\nthird\n"[:room]
    assert file.pending == b"second\nthird\n"[room:]
    assert len(said) == 1
    assert os.strerror(error) in said[0]
    disk.room = None
    file.write(b"fourth\n")
    assert path.read_bytes() == b"first\nsecond\nthird\nfourth\n"
    assert file.pending == b""
    assert [("again" in line) for line in said] == [False, True]
    assert file.close()


def test_bytes_that_a_failed_write_left_behind_are_not_doubled(disk, path, monkeypatch):
    def write_and_fail(descriptor, data):
        REAL_WRITE(descriptor, bytes(data)[:3])
        raise OSError(errno.EIO, "went wrong after three bytes")

    file = PatientFile(path, DiskTrouble(lambda _: None))
    monkeypatch.setattr("apa_cli.tracking.patient_file.os.write", write_and_fail)
    file.write(b"line\n")
    assert path.read_bytes() == b"lin"
    monkeypatch.setattr("apa_cli.tracking.patient_file.os.write", REAL_WRITE)
    file.write(b"next\n")
    assert path.read_bytes() == b"line\nnext\n"


def test_one_word_for_all_files_of_a_disk(disk, tmp_path):
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


def test_sync_and_close_try_again_and_tell(disk, path, monkeypatch):
    file = PatientFile(path, DiskTrouble(lambda _: None))
    disk.room = 0
    file.write(b"x\n")
    assert not file.sync()
    disk.room = None
    synced = []
    monkeypatch.setattr("apa_cli.tracking.patient_file.os.fsync", synced.append)
    assert file.sync()
    assert len(synced) == 1
    assert path.read_bytes() == b"x\n"
    disk.room = 0
    file.write(b"y\n")
    assert not file.close()
    assert not file.close()
    assert file.pending == b"y\n"
    assert file.problem.errno == errno.ENOSPC


def test_a_failed_fsync_is_trouble_too(path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    said = []
    file = PatientFile(path, DiskTrouble(said.append))
    file.write(b"x\n")
    monkeypatch.setattr("apa_cli.tracking.patient_file.os.fsync", fail)
    assert not file.sync()
    assert len(said) == 1
    monkeypatch.undo()
    file.write(b"y\n")
    assert path.read_bytes() == b"x\ny\n"
    assert len(said) == 2


def test_where_there_is_no_folder_opening_fails(tmp_path):
    with pytest.raises(FileNotFoundError):
        PatientFile(tmp_path / "none" / "lines")
