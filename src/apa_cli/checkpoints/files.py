"""Writing so that a crash leaves the old or the new, never a mixture: beside, synced, renamed into place.

`fault_point` marks the moments in between. The tests let a run die at one of them; otherwise it does nothing.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path

FAULT_VARIABLE = "APA_CLI_DIE_AT"  # the number of the fault point at which the process kills itself
_passed = itertools.count(1)


def fault_point() -> None:
    """Die here as if the power had gone, where the environment says that this is the moment."""
    wanted = os.environ.get(FAULT_VARIABLE)
    if wanted is not None and next(_passed) == int(wanted):
        os.kill(os.getpid(), signal.SIGKILL)


def sync_folder(folder: Path) -> None:
    """Make names in `folder` (files made, renamed, removed) last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """The whole text or what was there before."""
    beside = path.with_name(f".{path.name}.partial")
    fault_point()
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fault_point()
    os.replace(beside, path)
    fault_point()
    sync_folder(path.parent)


def partial_of(folder: Path) -> Path:
    """An empty folder to write the contents of `folder` into, before `put_in_place`."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename the complete, synced `partial` to `folder`. An older one there stays until the new one has its name."""
    for inside in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
        sync_folder(inside)
    old = _old_of(folder)
    fault_point()
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        fault_point()
    os.replace(partial, folder)
    fault_point()
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(parent: Path) -> None:
    """Tidy what a crash in `put_in_place` or before it left: a folder between two names goes back to its own."""
    for old in parent.glob(".*.old"):
        folder = parent / old.name.removeprefix(".").removesuffix(".old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, folder)
    for partial in parent.glob(".*.partial"):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _old_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
