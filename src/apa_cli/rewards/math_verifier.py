"""math-verify in a process of its own, which the kernel stops where an expression takes too long.

The library computes what a text asks for, and its own limit, an alarm, works in a main thread alone and cannot stop a
single long operation: 10^{10^{10}}! took it 18 s with a limit of 3. Processor time is what is limited here, so that a
busy machine changes no score. The process starts from this file, so it imports next to nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
import signal
import subprocess
import sys
import threading
import weakref
from functools import lru_cache
from typing import Any

from apa_cli.errors import UserError

SECONDS = 2.0  # of processor time, for one pair of answers
MEMORY = 4 * 2**30  # bytes of address space
PLACES = 6  # decimals that count; of a right answer below 1, from its first digit on
_START = "import sys; sys.path[:] = {path!r}; from apa_cli.rewards.math_verifier import serve; serve()"


class Verifier:
    """Compares answers written in LaTeX. Starts its process when it is first asked; usable from any thread.

    Raises UserError where math-verify cannot be imported there.
    """

    def __init__(self, where: str) -> None:
        self.where = where  # the reward that asks, for errors
        self._process: Any = None
        self._lock = threading.Lock()

    def readable(self, answer: str) -> bool:
        return self._ask(None, answer) is not None

    def equal(self, right: str, answer: str) -> float | None:
        """1 or 0; None where `answer` is no expression or takes too long, and NaN where `right` is none."""
        return 1.0 if right == answer else self._ask(right, answer)

    def _ask(self, right: str | None, answer: str) -> float | None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            reply = ""
            try:
                self._process.stdin.write(json.dumps([right, answer]) + "\n")
                self._process.stdin.flush()
                reply = self._process.stdout.readline()
            except BrokenPipeError:
                pass
            finally:
                if not reply:  # it took too long, or an interrupt: the reply to come belongs to no later question
                    _stop(self._process)
            number: float | None = json.loads(reply or "null")
            return number

    def _start(self) -> None:
        command = [sys.executable, "-c", _START.format(path=sys.path)]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True, encoding="utf-8")
        self._process = process
        weakref.finalize(self, _stop, process)
        if process.stdout is None or process.stdout.readline() != "ready\n":
            _stop(process)
            remedy = "python -c 'import math_verify' says why; pip install 'apa-cli[math]'"
            raise UserError(f"{self.where}.kind", "math-verify does not start", remedy)


def _stop(process: Any) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was written has no reader any more
            pipe.close()


def serve() -> None:
    """A pair of answers a line in; 1, 0, null (cannot be read) or NaN (the right one cannot) a line out."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the run's to answer; its end closes the input
        signal.signal(number, signal.SIG_IGN)
    out, sys.stdout = sys.stdout, sys.stderr
    logging.disable()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # macOS has none
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    from math_verify import LatexExtractionConfig, parse, verify

    @lru_cache(maxsize=1024)
    def parsed(answer: str) -> list[Any]:
        settings = {"fallback_mode": "no_fallback", "parsing_timeout": None}
        return list(parse(f"${answer}$", [LatexExtractionConfig()], **settings))

    def compared(right: list[Any], answer: list[Any]) -> float:
        places = PLACES
        if right[0].is_Number and 0 < abs(right[0]) < 1:  # else 2e-9 would equal 1e-9
            places -= math.floor(math.log10(abs(right[0]))) + 1
        return float(verify(right, answer, float_rounding=places, timeout_seconds=None))

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # at its end SIGPROF, which ends the process
        right, answer = json.loads(line)
        reply: float | None = None
        if found := parsed(answer):
            known = [] if right is None else parsed(right)
            reply = 1.0 if right is None else compared(known, found) if known else math.nan
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=out, flush=True)
