"""What a command sets in its process before torch is imported, and how it leaves it."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps

from apa_cli.commands.messages import report_error, say, traceback_wanted
from apa_cli.errors import UserError
from apa_cli.watchdog import STOPPING
from apa_cli.watched_thread import any_abandoned

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


def command(program: str) -> Callable[[Callable[[list[str]], int | None]], Callable[..., int]]:
    """Makes a command's `main` of what it does with its arguments: whatever happens, an exit code and at most one line.

    It ends the process even where a reward function hangs: at exit Python waits for every thread of a pool, so also
    for those that a hanging function has started.
    """

    def of(body: Callable[[list[str]], int | None]) -> Callable[..., int]:
        @wraps(body)
        def main(argv: list[str] | None = None) -> int:
            print_anything()
            _signals_as_ctrl_c()
            code = _exit_code(program, body, sys.argv[1:] if argv is None else argv)
            flush_output()
            if argv is None and any_abandoned():
                os._exit(code)
            return code

        return main

    return of


def _signals_as_ctrl_c() -> None:
    """SIGTERM, SIGHUP and the like raise KeyboardInterrupt, until a run has its own way with them."""
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING[1:]:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, signal.default_int_handler)


def _exit_code(program: str, body: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    full = traceback_wanted()  # a reward function may change the environment
    try:
        _check_surroundings(arguments)
        return body(arguments) or 0
    except KeyboardInterrupt:
        say(program, "interrupted")
        return 130
    except SystemExit as stop:  # argparse and Hydra end --help and the like this way
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        return report_error(program, error, full=full)


def _check_surroundings(arguments: list[str]) -> None:
    """A working folder that is there, and names that a text file can hold. Raises UserError."""
    try:
        folder = os.getcwd()
    except OSError as error:
        raise UserError("the current folder", "was deleted", "change to one that exists: cd DIR") from error
    for name in (*arguments, folder):
        if any("\ud800" <= character <= "\udfff" for character in name):
            where = "the current folder" if name == folder else name[:60].partition("=")[0]
            raise UserError(where, "not UTF-8 text, which config.yaml and other files could not hold", "rename it")


def flush_output() -> None:
    """What cannot be printed, to a pipe without a reader or a full disk, is nobody's error: Python would exit 120.

    Nor is a stream that somebody has closed.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:
            setattr(sys, name, None)
