"""A pytest that is told to stop, by SIGTERM or by the death of who started it, takes every process it began with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1


def descendants(pid: int) -> list[int]:
    """Children, their children and so on; Linux tells them in /proc, and elsewhere none are found."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def stop(number: int, frame: FrameType | None) -> None:
    held: list[int] = []
    while fresh := [pid for pid in descendants(os.getpid()) if pid not in held]:  # a held one begins none
        send(signal.SIGSTOP, fresh)
        held += fresh
    send(signal.SIGKILL, held)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def send(number: int, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def listen(*, worker: bool) -> None:
    """In the main thread of a pytest process; a `worker` also hears the death of the process that started it."""
    signal.signal(signal.SIGTERM, stop)
    if worker:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
