"""One row of the table of broken inputs, how it is run, and what holds for every one of them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from command import run_command

from apa_cli.commands import eval as eval_command
from apa_cli.commands import report as report_command
from apa_cli.commands import train as train_command

COMMANDS = {"apa-train": train_command.main, "apa-eval": eval_command.main, "apa-report": report_command.main}
FINISHED_MARKS = ("summary.json", "final", "latest", "eval.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Whole things that rows spoil a copy of; each folder is built once a session."""

    policy: Path
    reward: Path
    adapter: Path  # on `policy`
    other: Path  # a policy of another width and vocabulary
    run: Path  # finished, with checkpoints of iterations 1 and 2
    lora_run: Path


Make = Callable[[Path, Parts], None]


def nothing(folder: Path, parts: Parts) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Row:
    """`line` is what follows `apa-train: error: `, with … for any text; words of `command` may name `{parts}`."""

    name: str
    command: str
    line: str
    code: int = 2
    make: Make = nothing
    environment: Mapping[str, str | None] = field(default_factory=dict)  # None takes the variable away
    begun: bool = False  # something was loaded before it failed, so a folder with a run.log may be left

    @property
    def program(self) -> str:
        return self.command.split()[0]


@dataclass(frozen=True)
class Said:
    code: int
    errors: str
    output: str = ""


def words(row: Row, parts: Parts) -> list[str]:
    return [
        re.sub(r"\{(\w+)\}", lambda found: str(getattr(parts, found[1])), word) for word in shlex.split(row.command)
    ]


def run_script(row: Row, parts: Parts, folder: Path, *, prefix: tuple[str, ...] = (), shell: str = "") -> Said:
    """The script that was installed, in a process of its own. `prefix` runs it; `shell` follows it, such as `>&-`."""
    program, *arguments = words(row, parts)
    script = str(Path(sys.executable).parent / program)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HYDRA_", "PYTEST_"))}
    environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name, value in row.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    command: list[str] | str = [*prefix, script, *arguments]
    if shell:
        command = f"{shlex.join(command)} {shell}"
    done = subprocess.run(
        command, shell=bool(shell), cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        check=False, timeout=120,
    )  # fmt: skip
    return Said(done.returncode, *(stream.decode("utf-8", "replace") for stream in (done.stderr, done.stdout)))


def run_forked(row: Row, parts: Parts, folder: Path) -> Said:
    """In a process of its own that has imported what it needs."""
    done = run_command(*words(row, parts), cwd=folder, **row.environment)
    return Said(done.code, done.errors, done.output)


def contents(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Everything below: size and time of change of files but a log; what Python caches of a module does not count."""
    found = {
        path: path.lstat()
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and not path.name.endswith(".pyc")
    }
    return {
        str(path.relative_to(folder)): None
        if path.is_dir() or path.name == "run.log"
        else (facts.st_size, facts.st_mtime_ns)
        for path, facts in found.items()
    }


def check(row: Row, said: Said, folder: Path, before: dict[str, tuple[int, int] | None]) -> None:
    """What holds for every row: its code, its one line, and nothing left that looks like a result."""
    assert said.code == row.code, said.errors
    assert "Traceback" not in said.errors
    start = f"{row.program}: error: "
    lines = said.errors.splitlines()
    assert [line for line in lines if line.startswith(start)] == lines[-1:], said.errors
    assert len(lines) == 1, said.errors
    assert matches(row.line, lines[0].removeprefix(start)), f"\n  said   {lines[0]}\n  wanted {start}{row.line}"
    after = contents(folder)
    if not row.begun:
        assert after == before, "it failed before anything was loaded, and left or changed something"
    new = after.keys() - before.keys()
    marks = sorted(name for name in new if Path(name).name in FINISHED_MARKS)
    assert marks == [], "it looks finished"


def matches(wanted: str, said: str) -> bool:
    """`…` in `wanted` stands for any text."""
    return re.fullmatch(".*".join(map(re.escape, wanted.split("…"))), said) is not None


def copy_of(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, symlinks=True))
