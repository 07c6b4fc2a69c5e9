"""A small process that ends this one when Python no longer can.

Code that holds the interpreter's lock, such as a regular expression that backtracks forever, blocks all other threads
and Python's signal handlers. This file, run as a script, is that process: it learns when a call must have ended, and
from C code of every signal. Two seconds after Python should have acted, it has this process print its stacks, and
kills it. It ends with this process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
_TRACE = getattr(signal, "SIGRTMAX", signal.SIGQUIT)  # has C code print this process's stacks, whatever Python does
_MARGIN = 2.0  # seconds that Python is given to act by itself
_TOLD = re.compile(rb"\xff([CG])([^\n]*)\n|([^\xff])")  # a word of `_tell`, or from C a signal's number
_started: tuple[int, int] | None = None  # this process, and the pipe to the watchdog


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Kill this process if the context takes longer than `seconds`."""
    _tell(f"C{seconds}")
    try:
        yield
    finally:
        _tell("C")


@contextlib.contextmanager
def listening(grace_seconds: float) -> Iterator[None]:
    """Kill this process `grace_seconds` after a signal of STOPPING, and at a second one. Main thread only."""
    before = signal.set_wakeup_fd(_tell(f"G{grace_seconds}"), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _tell("G")


def _tell(word: str) -> int:
    """Send a word to the watchdog, and start it at the first. Returns the pipe to it."""
    global _started
    if _started is None or _started[0] != os.getpid():  # a fork has its own
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        faulthandler.register(_TRACE, file=2, all_threads=True, chain=False)
        subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=told,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        os.close(told)
        _started = os.getpid(), tell
    with contextlib.suppress(OSError):  # it is gone: nothing is watched
        os.write(_started[1], b"\xff" + word.encode() + b"\n")
    return _started[1]


def _watch(process: int) -> None:
    never = float("inf")
    call_ends, ends, grace = never, never, never  # moments on the monotonic clock; seconds, never: not listening
    heard, why, signals = b"", "", 0
    while os.getppid() == process:
        due = min(call_ends, ends)
        if not select.select([0], [], [], min(5.0, max(0.0, due - time.monotonic())))[0]:
            if time.monotonic() >= due:
                return _kill(process, "a call did not end in its time" if due == call_ends else why)
            continue
        if not (chunk := os.read(0, 4096)):
            return
        heard += chunk
        while told := _TOLD.match(heard):
            heard, seconds = heard[told.end() :], float(told[2] or never)
            if told[1] == b"C":
                call_ends = time.monotonic() + seconds + _MARGIN
            elif told[1] == b"G":
                grace, ends, signals = seconds, never, 0
            elif grace < never and (number := told[3][0]) in STOPPING:
                signals += 1
                why = (
                    f"{signal.Signals(number).name}: not done within {grace:g} s" if signals == 1 else "a second signal"
                )
                ends = time.monotonic() + _MARGIN + (grace if signals == 1 else 0.0)


def _kill(process: int, why: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"apa-cli: {why}, and Python does not respond; it hangs at:\n".encode())
        os.kill(process, _TRACE)
        time.sleep(0.5)  # all of its stacks
        os.write(2, b"apa-cli: killed, the last complete checkpoint is kept\n")
    with contextlib.suppress(OSError):
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    for stopping in STOPPING:
        signal.signal(stopping, signal.SIG_IGN)
    _watch(int(sys.argv[1]))
