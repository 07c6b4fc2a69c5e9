"""One run a folder: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apa_cli.errors import UserError

LOCK_FILE = ".lock"


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` against other runs. Raises UserError, naming the process, where one holds it.

    A file system without locks is left unguarded.
    """
    path = run_dir / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except IsADirectoryError:
            problem = f"{path} is a folder, where the run's lock belongs"
            raise UserError("output_dir", problem, "remove it, or choose another folder") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                "output_dir",
                f"another run{f' ({holder})' if holder else ''} is at work in {run_dir}",
                "wait for it to end, or choose another folder",
            ) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            yield
            return
        if _is_still(descriptor, path):
            break
        os.close(descriptor)  # its holder removed it in between; another may hold the new one
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError:  # a full disk: the lock holds all the same
        pass
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
