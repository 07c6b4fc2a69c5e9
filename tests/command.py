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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TINY = (  # one iteration of the built-in task, judged on a few prompts
    *("training.iterations=1", "rollout.batch_size=8", "training.minibatch_size=4", "evaluation.prompts=4"),
    *("generation.max_new_tokens=8", "checkpoint.every=0", "tracking.wandb.mode=disabled"),
)


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
    """Starts commands in forks of one process, which has imported what they need, one at a time. See fork_server.py."""

    process: subprocess.Popen[str] | None = None
    pid: int | None = None

    def start(
        self,
        program: str,
        words: Sequence[str],
        *,
        output: Path,
        errors: Path,
        cwd: Path | None = None,
        variables: dict[str, str | None] | None = None,
        **asked: Any,
    ) -> int:
        """The process id."""
        if self.process is None:  # ends when its standard input does, with this process
            command = [sys.executable, str(ROOT / "tests" / "fork_server.py")]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
            )
            assert self._line() == "ready"
        if self.pid is not None:  # of a test that failed before it waited
            self.wait(kill_after=0)
        places = {"output": str(output), "errors": str(errors), "cwd": str(cwd or Path.cwd())}
        request = {"program": program, "words": words, "environment": environment(**variables or {}), **places, **asked}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.pid = int(self._line())
        return self.pid

    def wait(self, *, kill_after: float = 300.0, kill_with: int = signal.SIGKILL) -> int:
        """Exit code, or the negative number of the signal that ended it; `kill_with` comes after so many seconds."""
        timer = threading.Timer(kill_after, kill, (self.pid, kill_with))
        timer.start()
        try:
            return int(self._line())
        finally:
            timer.cancel()
            self.pid = None

    def _line(self) -> str:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the fork server is gone"
        return line


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(pid, number)


def wait_until(true: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SERVER = ForkServer()


class Running:
    """`PROGRAM WORDS` at work in a process of its own."""

    def __init__(
        self, program: str, *words: str, cwd: Path | None = None, pictures: bool = False, **variables: str | None
    ) -> None:
        self.place, self.folder = tempfile.TemporaryDirectory(), cwd or Path()
        self.output, self.errors = Path(self.place.name, "output"), Path(self.place.name, "errors")
        self.pid = SERVER.start(
            program, words, output=self.output, errors=self.errors, variables=variables, cwd=cwd,
            pictures=pictures or program != "apa-train",
        )  # fmt: skip

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self, timeout: float = 300) -> Finished:
        with self.place:
            code = SERVER.wait(kill_after=timeout)
            output, errors = (file.read_text(encoding="utf-8") for file in (self.output, self.errors))
        return Finished(code=code, output=output, errors=errors, folder=self.folder)


def run_command(program: str, *words: str, timeout: float = 300, fresh: bool = False, **options: Any) -> Finished:
    """`PROGRAM WORDS` in a process of its own; `fresh`: one that has imported nothing, and ends as Python does.

    A run's `pictures` are left out otherwise: they are a third of a small run's time.
    """
    if not fresh:
        return Running(program, *words, **options).finish(timeout)
    cwd = options.pop("cwd", None)
    done = subprocess.run(
        [str(Path(sys.executable).parent / program), *words], capture_output=True, text=True, check=False, cwd=cwd,
        timeout=timeout, env=environment(**options), encoding="utf-8",
    )  # fmt: skip
    return Finished(code=done.returncode, output=done.stdout, errors=done.stderr, folder=cwd or Path())


def apa_train(folder: Path, *overrides: str, **options: Any) -> Finished:
    """`apa-train output_dir=FOLDER OVERRIDES` in a process of its own."""
    return replace(run_command("apa-train", f"output_dir={folder}", *overrides, **options), folder=folder)
