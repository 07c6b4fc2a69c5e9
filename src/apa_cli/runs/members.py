"""The members of a sweep on disk: which are done, which another process runs, and what failed. Imports no torch."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
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
from apa_cli.runs.folders import ASIDE, FAILURE_FILE, flat, is_finished, learnt, read_json, read_run
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
    # Keys that an older version did not know cannot differ: set on the command line they name another member.
    old, new = read_run(folder).config, flat(redact(config))
    different = [key for key in new if key.split(".")[0] not in ELSEWHERE and key in old and old[key] != new[key]]
    if different:
        key = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise UserError(
            "output_dir",
            f"holds this run, finished with another configuration: {key}={old[key]}, now {new[key]}{more}",
            "choose another output_dir, or remove that folder",
        )
    return True


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
    return not file.is_symlink() and {"error", "code", "sweep"} <= read_json(file).keys()


def failures_of(sweep_dir: Path, sweep: str) -> list[tuple[str, str, int]]:
    """Name, reason and exit code of the members that failed in this call of the command."""
    failed = []
    for file in sorted([*sweep_dir.glob(f"*/{FAILURE_FILE}"), *sweep_dir.glob(f"{CONFLICTS}/*.json")]):
        name = file.stem if file.parent.name == CONFLICTS else file.parent.name
        record = read_json(file)
        if record.get("sweep") == sweep and ASIDE not in name:
            failed.append((name, str(record.get("error")), int(record.get("code", 1))))
    return failed
