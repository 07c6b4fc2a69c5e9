"""Which checkpoint of a run to go on from: the newest whole one. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from apa_cli.checkpoints.manifest import check_manifest
from apa_cli.errors import UserError

PART = "_part"  # ends the name of a checkpoint made in the middle of an iteration
_NAME = re.compile(rf"iter_(\d+)({PART})?")
TRAINER_STATE = "trainer_state"


def checkpoint_iteration(folder: Path) -> int | None:
    """Finished iterations, by the folder's name; None where it is no checkpoint's."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def checkpoints_in(folder: Path) -> list[Path]:
    """All that are named as checkpoints, oldest first."""
    found = [(match, path) for path in folder.glob("iter_*") if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda f: (int(f[0][1]), bool(f[0][2])))]


def newest_whole(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is as it was written; every damaged one on the way is named to `warn`."""
    for path in reversed(checkpoints_in(folder)):
        try:
            check_manifest(path, "checkpoint")
        except UserError as error:
            warn(f"{path.name} is left out: {error.problem}")
            continue
        return path
    return None
