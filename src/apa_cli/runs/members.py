"""The members of a sweep on disk: which are done, which another process runs, and what failed. Imports no torch."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apa_cli.checkpoints.ownership import is_run
from apa_cli.config.keys import AUTO
from apa_cli.config.members import ELSEWHERE
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import shown
from apa_cli.errors import UserError
from apa_cli.files import write_text
from apa_cli.runs.folders import ASIDE, FAILURE_FILE, flat, is_finished, learnt, read_run
from apa_cli.secrets import redact, redact_text

CONFLICTS = ".conflicts"  # notes of members whose folder holds another finished run


def done_before(folder: Path, config: TrainConfig) -> bool:
    """Whether this very run is finished in `folder`. One that was killed is gone on with: `config.resume` says so then.

    Raises UserError where another run is finished there.
    """
    if not is_finished(folder):
        if _is_note(folder / FAILURE_FILE):
            (folder / FAILURE_FILE).unlink()
        if config.resume is None and is_run(folder) and learnt(folder):
            config.resume = AUTO
        return False
    different = _differences(read_run(folder).config, config)
    if different:
        key, before, now = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise UserError(
            "output_dir",
            f"holds this run, finished with another configuration: {key}={before}, now {now}{more}",
            "choose another output_dir, or remove that folder",
        )
    return True


def _differences(before: Mapping[str, Any], config: TrainConfig) -> list[tuple[str, Any, Any]]:
    """Keys that an older version did not know cannot differ: set on the command line they name another member."""
    now = flat(redact(config))
    names = [name for name in now if name.split(".")[0] not in ELSEWHERE and name in before]
    return [(name, before[name], now[name]) for name in names if before[name] != now[name]]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the member against other processes: a sweep started twice must not move a running member aside."""
    (folder.parent / CONFLICTS / f"{folder.name}.json").unlink(missing_ok=True)
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / folder.name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(shown(str(folder)), "another process runs it now", "wait for it to end") from None
        except OSError:  # a file system without locks
            pass
        yield


def note_failure(folder: Path, error: str, *, code: int, sweep: str, overrides: Sequence[str], config: Any) -> None:
    """Leave in the member's folder why it failed: the launchers' processes have no other way to tell.

    A finished run's folder is not touched, nor one with something of the user's; the note then lies beside it.
    """
    record = {
        "error": redact_text(error),
        "code": code,
        "sweep": sweep,
        "overrides": redact(list(overrides)),
        "config": redact(asdict(config)) if isinstance(config, TrainConfig) else None,
    }
    theirs = folder.is_dir() and not is_run(folder) and any(p.name != FAILURE_FILE for p in folder.iterdir())
    file = folder / FAILURE_FILE
    if theirs or is_finished(folder) or (file.exists() and not _is_note(file)):
        file = folder.parent / CONFLICTS / f"{folder.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(record, indent=2, default=str) + "\n")


def _is_note(file: Path) -> bool:
    """Whether `note_failure` has written it."""
    try:
        return not file.is_symlink() and {"error", "code", "sweep"} <= json.loads(file.read_text("utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        return False


def failures_of(sweep_dir: Path, sweep: str) -> list[tuple[str, str, int]]:
    """Name, reason and exit code of the members that failed in this call of the command."""
    failed = []
    for file in sorted([*sweep_dir.glob(f"*/{FAILURE_FILE}"), *sweep_dir.glob(f"{CONFLICTS}/*.json")]):
        name = file.stem if file.parent.name == CONFLICTS else file.parent.name
        try:
            record = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if record.get("sweep") == sweep and ASIDE not in name:
            failed.append((name, str(record.get("error")), int(record.get("code", 1))))
    return failed
