"""A small process that ends this one when Python no longer can.

Code that holds the interpreter's lock, such as a regular expression that backtracks forever, blocks all other threads
and Python's signal handlers. This file, run as a script, is that process: it learns when a call must have ended, and
from C code of every signal. Two seconds after Python should have acted, it reports where this process hangs and kills
it. It ends with this process.
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
_TRACE = getattr(signal, "SIGRTMAX", signal.SIGQUIT)  # has C code write this process's stacks, whatever Python does
_MARGIN = 2.0  # seconds that Python is given to act by itself
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
    _tell(f"G{grace_seconds}")
    assert _started is not None
    before = signal.set_wakeup_fd(_started[1], warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _tell("G")


def _tell(word: str) -> None:
    global _started
    if _started is None or _started[0] != os.getpid():  # a fork has its own
        told, tell = os.pipe()
        stacks, write_stacks = os.pipe()
        os.set_blocking(tell, False)
        faulthandler.register(_TRACE, file=write_stacks, all_threads=True, chain=False)
        subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(stacks)],
            stdin=told,
            stdout=subprocess.DEVNULL,
            pass_fds=(stacks,),
            start_new_session=True,  # Ctrl-C is not for it
        )
        os.close(told)
        os.close(stacks)
        _started = os.getpid(), tell
    with contextlib.suppress(OSError):  # it is gone: nothing is watched
        os.write(_started[1], b"\xff" + word.encode() + b"\n")


def hung_at(stacks: str, library: str, package: str) -> str:
    """`FILE:LINE in NAME` of the running user code in faulthandler's dump of all threads.

    This is the newest frame outside Python's `library` and this `package`, in the thread that calls user code if there
    is one, else the newest frame of all.
    """
    threads = [re.findall(r'File "(.*)", line (\d+) in (\S+)', part) for part in re.split(r"\n\s*\n", stacks)]
    threads.sort(key=lambda frames: not any(file.endswith("watched_thread.py") for file, *_ in frames))
    frames = [frame for thread in threads for frame in thread]
    foreign = [
        f
        for f in frames
        if not f[0].startswith((package, "<")) and (not f[0].startswith(library) or "-packages" in f[0])
    ]
    for file, line, name in (*foreign, *frames):
        return f"{file}:{line} in {name}"
    return "an unknown place"


def _watch(process: int, stacks: int) -> None:
    waiting, why, signals = b"", "", 0
    never = float("inf")
    call_ends, ends, grace = never, never, never  # moments on the monotonic clock; seconds, never: not listening
    while True:
        due = min(call_ends, ends)
        ready, _, _ = select.select([0], [], [], min(5.0, max(0.0, due - time.monotonic())))
        if os.getppid() != process:
            return
        if not ready:
            if time.monotonic() >= due:
                _kill(process, stacks, "a call did not end in its time" if due == call_ends else why)
                return
            continue
        chunk = os.read(0, 4096)
        if not chunk:
            return
        waiting += chunk
        while waiting:
            if waiting[0] != 0xFF:  # a signal's number, from C
                number, waiting = waiting[0], waiting[1:]
                if grace < never and number in STOPPING:
                    signals += 1
                    name = signal.Signals(number).name
                    why = "a second signal" if signals > 1 else f"{name}: not done within {grace:g} s"
                    ends = time.monotonic() + _MARGIN + (0.0 if signals > 1 else grace)
                continue
            word, newline, rest = waiting[1:].partition(b"\n")
            if not newline:
                break
            waiting, seconds = rest, float(word[1:] or never)
            if word[:1] == b"C":
                call_ends = time.monotonic() + seconds + _MARGIN
            else:
                grace, ends, signals = seconds, never, 0


def _kill(process: int, stacks: int, why: str) -> None:
    where = ""
    with contextlib.suppress(OSError):
        os.kill(process, _TRACE)
        if select.select([stacks], [], [], 1.0)[0]:
            time.sleep(0.1)  # all of it
            text = os.read(stacks, 1 << 16).decode(errors="replace")
            where = f"; it hangs at {hung_at(text, os.path.dirname(os.__file__), os.path.dirname(__file__))}"
        line = f"apa-cli: {why}, and Python does not respond{where}: killed, the last complete checkpoint is kept\n"
        os.write(2, line.encode())
    with contextlib.suppress(OSError):
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    for stopping in STOPPING:
        signal.signal(stopping, signal.SIG_IGN)
    _watch(int(sys.argv[1]), int(sys.argv[2]))
