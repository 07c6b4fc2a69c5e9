"""Running the real commands as a user would, and reading what they left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Finished:
    code: int
    output: str
    errors: str
    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of trained iterations; iteration 0 has only eval/*."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["iteration"] > 0]


def environment(**changes: str | None) -> dict[str, str]:
    """This process's, on one thread (tiny models are slower on more) and without a hub to ask; None takes one out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HYDRA_", "PYTEST_"))}
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **changes}
    return {name: value for name, value in {**kept, **own}.items() if value is not None}


class ForkServer:
    """Starts commands in forks of one process, which has imported what they need. See fork_server.py."""

    process: subprocess.Popen[str] | None = None

    def run(
        self,
        program: str,
        words: Sequence[str],
        *,
        output: Path,
        errors: Path,
        cwd: Path | None = None,
        variables: dict[str, str | None] | None = None,
        kill_after: float = 300.0,
        kill_with: int = signal.SIGKILL,
        **asked: Any,
    ) -> int:
        """Exit code, or the negative number of the signal that ended it; `kill_with` comes after so many seconds."""
        if self.process is None:  # ends when its standard input does, with this process
            command = [sys.executable, str(ROOT / "tests" / "fork_server.py")]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
            )
            assert self._line() == "ready"
        places = {"output": str(output), "errors": str(errors), "cwd": str(cwd or Path.cwd())}
        request = {"program": program, "words": words, "environment": environment(**variables or {}), **places, **asked}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        timer = threading.Timer(kill_after, kill, (int(self._line()), kill_with))
        timer.start()
        try:
            return int(self._line())
        finally:
            timer.cancel()

    def _line(self) -> str:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the fork server is gone"
        return line


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(pid, number)


SERVER = ForkServer()


def run_command(
    program: str,
    *words: str,
    cwd: Path | None = None,
    timeout: float = 300,
    fresh: bool = False,
    pictures: bool = False,
    **variables: str | None,
) -> Finished:
    """`PROGRAM WORDS` in a process of its own; `fresh`: one that has imported nothing, and ends as Python does.

    A run's `pictures` are left out otherwise: they are a third of a small run's time.
    """
    if fresh:
        done = subprocess.run(
            [str(Path(sys.executable).parent / program), *words], capture_output=True, text=True, check=False, cwd=cwd,
            timeout=timeout, env=environment(**variables), encoding="utf-8",
        )  # fmt: skip
        return Finished(code=done.returncode, output=done.stdout, errors=done.stderr, folder=cwd or Path())
    with tempfile.TemporaryDirectory() as place:
        output, errors = Path(place, "output"), Path(place, "errors")
        said = {
            "output": output,
            "errors": errors,
            "variables": variables,
            "pictures": pictures or program != "apa-train",
        }
        code = SERVER.run(program, words, **said, cwd=cwd, kill_after=timeout)
        texts = [file.read_text(encoding="utf-8") for file in (output, errors)]
    return Finished(code=code, output=texts[0], errors=texts[1], folder=cwd or Path())


def apa_train(folder: Path, *overrides: str, **options: Any) -> Finished:
    """`apa-train output_dir=FOLDER OVERRIDES` in a process of its own."""
    return replace(run_command("apa-train", f"output_dir={folder}", *overrides, **options), folder=folder)
