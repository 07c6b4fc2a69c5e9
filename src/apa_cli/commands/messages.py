"""What a command says on the terminal besides its results: one line for an error, with its program's name before it."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from apa_cli.config.sources import shown
from apa_cli.config.translate import translate
from apa_cli.errors import RunError, UserError


def say(program: str, line: str) -> None:
    from apa_cli.secrets import printable  # its package imports more than a command needs to begin

    with suppress(OSError, ValueError):  # nobody can read it: a reward function may have closed the stream
        print(f"{program}: {printable(line)}", file=sys.stderr, flush=True)


def traceback_wanted() -> bool:
    """APA_TRACEBACK=1, or Hydra's own name for it: the whole traceback, of user errors too."""
    return "1" in (os.environ.get("APA_TRACEBACK"), os.environ.get("HYDRA_FULL_ERROR"))


def exit_code(error: BaseException) -> int:
    """2 where it is the user's to mend, 130 where a signal was behind it, otherwise 1."""
    return 2 if translate(error) else 130 if _of_an_interrupt(error) else 1


def _of_an_interrupt(error: BaseException) -> bool:
    """Whether a library met a signal in the middle of its work, and then failed to tidy up."""
    if isinstance(error, (UserError, RunError)):
        return False
    before = error.__context__
    return isinstance(before, KeyboardInterrupt) or (before is not None and _of_an_interrupt(before))


def one_line(error: BaseException) -> str:
    """The error without its traceback."""
    wrong = translate(error)
    if wrong or isinstance(error, RunError):
        return str(wrong or error)
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {message}' if message else ''}"


def report_error(
    program: str, error: BaseException, *, run: str = "", run_dir: Path | None = None, full: bool = False
) -> int:
    """One line on stderr, and the traceback where it is asked for. The exit code."""
    if exit_code(error) == 130:
        say(program, "interrupted")
        return 130
    wrong = translate(error)
    log = (run_dir or Path()) / "run.log"
    logged = run_dir is not None and log.is_file()
    explained = wrong is not None or isinstance(error, RunError)
    if full:
        from apa_cli.secrets import printable

        with suppress(OSError, ValueError):
            print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    hint = ""
    if not (explained or full):
        hint = f" (traceback in {shown(str(log))})" if logged else " (APA_TRACEBACK=1 shows the traceback)"
    kind = "error" if explained else "internal error"
    say(program, f"{kind}: {f'{run}: ' if run else ''}{one_line(error)}{hint}")
    return exit_code(error)
