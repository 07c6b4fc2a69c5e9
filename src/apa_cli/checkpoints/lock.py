"""One run per folder: a lock that the system releases when the process ends."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from apa_cli.config.sources import shown
from apa_cli.errors import UserError
from apa_cli.files import missing_folders, remove_empty

LOCK_FILE = ".lock"
_CONTENT = re.compile(rb"(process \d+ on [^\n]*\n?)?")


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` against other runs. Raises UserError, naming the process, where one holds it.

    A file system without locks is left unguarded. Folders made for the lock go again where nothing else came into them.
    """
    made, path = missing_folders(run_dir), run_dir / LOCK_FILE
    make_folder(run_dir)
    descriptor = None
    try:
        while descriptor is None:
            descriptor = _taken(path, run_dir)
        yield
    finally:
        if descriptor is not None and descriptor >= 0:
            path.unlink(missing_ok=True)
            os.close(descriptor)
        remove_empty(made)


def make_folder(folder: Path) -> None:
    """Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_folder(str(error.filename or folder), error.strerror) from error


def no_folder(name: str, reason: str | None) -> UserError:
    problem = f"no folder {shown(name)!r} can be made: {reason}"
    return UserError("output_dir", problem, "name another: output_dir=DIR")


def _taken(path: Path, run_dir: Path) -> int | None:
    """The locked file; -1 where the file system has no locks, None where its holder has just removed it."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            return -1
        problem = f"another run{f' ({holder})' if holder else ''} is at work in {run_dir}"
        raise UserError("output_dir", problem, "wait for it to end, or choose another folder") from None
    try:
        ours = os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        ours = False
    if not ours:  # another may hold the new one
        os.close(descriptor)
        return None
    with suppress(OSError):  # a full disk: the lock still holds
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def _open(path: Path) -> int:
    """Raise UserError if the lock's name is something else."""
    refusal = UserError("output_dir", f"{path} is not the lock of a run", "move it away, or choose another folder")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise refusal from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _CONTENT.fullmatch(os.pread(descriptor, 1000, 0)):
        os.close(descriptor)
        raise refusal
    return descriptor
