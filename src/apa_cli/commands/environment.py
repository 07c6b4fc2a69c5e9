"""What a command sets in its process before torch is imported, and how it leaves it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import wraps

from apa_cli.models.watched_thread import any_abandoned

SPINS = "10000"


def share_the_processor() -> None:
    """Let waiting OpenMP threads go to sleep after a short spin, unless the user has set how they wait.

    By default they spin long enough to keep a core from whoever has work for it. Seconds an iteration of the built-in
    task, two cores: idle machine 0.55 by default, 0.58 with this, 1.1 when threads sleep at once (OMP_WAIT_POLICY=
    PASSIVE); beside two busy processes 6 to 27 by default, 1.6 with this. GNU OpenMP, which torch's Linux builds use,
    reads the variable as it loads.
    """
    if not os.environ.get("OMP_WAIT_POLICY"):
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def print_anything() -> None:
    """Characters that the terminal's encoding lacks are printed as escapes: `\\u03bb` where it has no λ.

    A stream that was closed (`>&-`) leads nowhere from here on, before a file of the run is opened under its number.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def ends_the_process(main: Callable[..., int]) -> Callable[..., int]:
    """A command's `main` that ends its process even where a reward function hangs.

    At exit Python waits for every thread of a pool, so also for those that a hanging function has started.
    """

    @wraps(main)
    def ending(argv: list[str] | None = None) -> int:
        code = main(argv)
        flush_output()
        if argv is None and any_abandoned():
            os._exit(code)
        return code

    return ending


def flush_output() -> None:
    """What cannot be printed, to a pipe without a reader or a full disk, is nobody's error: Python would exit 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
