"""What a command says on the terminal besides its results: one line for an error, with its program's name before it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from apa_cli.config.sources import shown
from apa_cli.config.translate import translate
from apa_cli.errors import RunError


def say(program: str, line: str) -> None:
    from apa_cli.tracking.secrets import redact_text  # its package imports more than a command needs to begin

    print(f"{program}: {redact_text(line)}", file=sys.stderr, flush=True)


def exit_code(error: Exception) -> int:
    """2 where it is the user's to mend, otherwise 1."""
    return 2 if translate(error) else 1


def one_line(error: Exception) -> str:
    """The error without its traceback."""
    wrong = translate(error)
    if wrong or isinstance(error, RunError):
        return str(wrong or error)
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {message}' if message else ''}"


def report_error(
    program: str, error: Exception, *, run: str = "", run_dir: Path | None = None, full: bool = False
) -> int:
    """One line on stderr; the traceback too where nobody else keeps it, or the user asks for it. The exit code."""
    wrong = translate(error)
    log = (run_dir or Path()) / "run.log"
    logged = run_dir is not None and log.is_file()
    explained = wrong is not None or isinstance(error, RunError)
    if full or not (explained or logged):
        from apa_cli.tracking.secrets import redact_text

        print(redact_text("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    hint = f" (traceback in {shown(str(log))})" if logged and not explained else ""
    say(program, f"error: {f'{run}: ' if run else ''}{one_line(error)}{hint}")
    return exit_code(error)
