"""Find the checkpoint to resume from: the newest complete one. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from apa_cli.checkpoints.manifest import MANIFEST, check_manifest, warn_of_unlisted
from apa_cli.errors import UserError

POINTERS = ("latest", "best")  # small files in checkpoints/ that hold the name of one
PART = "_part"  # ends the name of a checkpoint made in the middle of an iteration
_NAME = re.compile(rf"iter_(\d+)({PART})?")
TRAINER_STATE = "trainer_state"


def checkpoint_iteration(folder: Path) -> int | None:
    """Finished iterations in a checkpoint's name; None for other names."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders with the name and some content of a checkpoint, oldest first."""
    parts = (MANIFEST, TRAINER_STATE, "policy")
    named = [path for path in folder.glob("iter_*") if any((path / part).exists() for part in parts)]
    found = [(match, path) for path in named if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda f: (int(f[0][1]), bool(f[0][2])))]


def named_in(pointer: Path) -> str | None:
    """The checkpoint that `pointer` names, a small file or the link of older versions. None: it is no pointer."""
    try:
        name = os.readlink(pointer) if pointer.is_symlink() else pointer.read_text("utf-8").strip()
    except (OSError, ValueError):  # of a copied run a folder: the copy of a checkpoint
        return None
    return name if _NAME.fullmatch(name) else None


def pointed_to(pointer: Path) -> Path | None:
    """The checkpoint itself, or None."""
    name = named_in(pointer)
    return pointer.parent / name if name and (pointer.parent / name).is_dir() else None


def followed(place: Path) -> Path:
    """The checkpoint that `place` points to, otherwise `place`."""
    return (pointed_to(place) if place.name in POINTERS else None) or place


def newest_whole(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint. `warn` is called for each damaged one before it.

    So is what lies in it and is not listed.
    """
    for path in reversed(checkpoints_in(folder)):
        try:
            warn_of_unlisted(path, check_manifest(path, "checkpoint"), warn)
        except UserError as error:
            warn(f"{path.name} is left out: {error.problem}")
            continue
        return path
    return None
