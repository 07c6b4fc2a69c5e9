"""What a command sets in its process before torch is imported, says on the terminal, and how it leaves both."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path

from apa_cli.checkpoints.lock import no_folder
from apa_cli.config.sources import shown
from apa_cli.errors import RunError, UserError
from apa_cli.secrets import printable
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


def command(program: str) -> Callable[[Callable[[list[str]], int | None]], Callable[..., int]]:
    """Makes a command's `main` of what it does with its arguments: whatever happens, an exit code and at most one line.

    It ends the process even where a reward function hangs: at exit Python waits forevery thread of a pool, so also
    for those that a hanging function has started.
    """

    def of(body: Callable[[list[str]], int | None]) -> Callable[..., int]:
        @wraps(body)
        def main(argv: list[str] | None = None) -> int:
            _print_anything()
            if threading.current_thread() is threading.main_thread():
                for number in STOPPING[1:]:  # like Ctrl-C, until a run has its own way with them
                    if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                        signal.signal(number, signal.default_int_handler)
            code = _exit_code(program, body, sys.argv[1:] if argv is None else argv)
            _flush_output()
            if argv is None and any_abandoned():
                os._exit(code)
            return code

        return main

    return of


def _print_anything() -> None:
    """Characters that the terminal's encoding lacks are printed as escapes: `\\u03bb` where it has no λ.

    A stream that was closed (`>&-`) leads nowhere from here on, before a file of the run is opened under its number.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_output() -> None:
    """What a pipe without a reader, a full disk or a closed stream does not take is no error: Python would exit 120."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:
            setattr(sys, name, None)


def _exit_code(program: str, body: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    full = traceback_wanted()  # a reward function may change the environment
    try:
        return body(arguments) or 0
    except KeyboardInterrupt:
        say(program, "interrupted")
        return 130
    except SystemExit as stop:  # argparse and Hydra end --help and the like this way
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # --help | head
        return 0
    except BaseException as error:
        return report_error(program, error, full=full)


def check_folder(output_dir: str, key: str = "output_dir", remedy: str = "output_dir=DIR") -> None:
    """Raise UserError where no folder of this name can be made or written in. Creates nothing."""
    there = Path(output_dir).absolute()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
    except OSError as error:  # a name too long
        raise no_folder(output_dir, error.strerror) from error
    if "\0" in output_dir:
        raise no_folder(output_dir, "a NUL in its name")
    if not there.is_dir():
        raise UserError(key, f"{shown(str(there))} is a file", f"name a folder: {remedy}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(key, f"no permission to write in {there}", f"name another folder: {remedy}")


def say(program: str, line: str) -> None:
    """One line on stderr, with the program's name before it."""
    with suppress(OSError, ValueError):  # nobody can read it: a reward function may have closed the stream
        print(f"{program}: {printable(line)}", file=sys.stderr, flush=True)


def traceback_wanted() -> bool:
    """APA_TRACEBACK=1, or Hydra's own name for it: the whole traceback, of user errors too."""
    return "1" in (os.environ.get("APA_TRACEBACK"), os.environ.get("HYDRA_FULL_ERROR"))


def exit_code(error: BaseException) -> int:
    """2 where it is the user's to mend, 130 where a library met a signal and then failed to tidy up, otherwise 1."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, (UserError, RunError)):
        if isinstance(link := link.__context__, KeyboardInterrupt):
            return 130
    return 2 if isinstance(error, UserError) else 1


def one_line(error: BaseException) -> str:
    """The error without its traceback."""
    if isinstance(error, (UserError, RunError)):
        return str(error)
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {message}' if message else ''}"


def report_error(
    program: str, error: BaseException, *, run: str = "", run_dir: Path | None = None, full: bool = False
) -> int:
    """One line on stderr, and the traceback where it is asked for. The exit code."""
    if (code := exit_code(error)) == 130:
        say(program, "interrupted")
        return code
    explained = isinstance(error, (UserError, RunError))
    hint = ""
    if full:
        with suppress(OSError, ValueError):
            print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    elif not explained:
        log = run_dir / "run.log" if run_dir is not None else None
        hint = (
            f" (traceback in {shown(str(log))})" if log and log.is_file() else " (APA_TRACEBACK=1 shows the traceback)"
        )
    say(program, f"{'' if explained else 'internal '}error: {f'{run}: ' if run else ''}{one_line(error)}{hint}")
    return code
