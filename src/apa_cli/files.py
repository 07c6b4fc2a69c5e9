"""Writing so that a crash leaves the old or the new, never a mixture: beside, synced, renamed into place.

Nothing here deletes or overwrites what it is not told to be the run's own.
`fault_point` marks the moments in between. The tests let a run die at one of them; otherwise it does nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
import os
import shutil
import signal
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

FAULT_VARIABLE = "APA_CLI_DIE_AT"  # the number of the fault point at which the process kills itself
UNFINISHED = ".apa-cli-unfinished"  # lies in a folder that is being written, and says that it is ours
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


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file to write, which is synced and renamed to `path` at the end. A link there is replaced."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    fault_point()
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        fault_point()
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    fault_point()
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write the whole text, or leave what is there."""
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def json_value(value: Any) -> Any:
    """`value` as every reader of JSON knows it: NaN and infinity become null, and what JSON has no word for, text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if hasattr(value, "item"):  # a scalar of an array library
        value = value.item()
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def separate(path: Path) -> None:
    """Make a file that has other names (hard links) one of its own, before it is appended to."""
    if path.is_file() and path.stat().st_nlink > 1:
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        shutil.copy2(path, beside)
        os.replace(beside, path)


def missing_folders(folder: Path) -> list[Path]:
    """`folder` and its parents, as far as they do not exist yet, deepest first."""
    folder = Path(os.path.abspath(folder))
    return list(itertools.takewhile(lambda place: not os.path.lexists(place), (folder, *folder.parents)))


def remove_empty(folders: Collection[Path]) -> None:
    """Those that hold nothing, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def files_in(folder: Path) -> list[str]:
    """Every file and link below `folder`, as relative paths."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def partial_of(folder: Path) -> Path:
    """An empty folder to write the contents of `folder` into, before `put_in_place`."""
    partial = folder.with_name(f".{folder.name}.partial")
    remove_partial(partial)
    partial.mkdir(parents=True)
    (partial / UNFINISHED).touch()
    return partial


def remove_partial(partial: Path) -> None:
    """What an attempt that did not end has left there; a folder of anybody else's stays."""
    if (partial / UNFINISHED).is_file():
        for path in partial.iterdir():
            if path.name != UNFINISHED:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (partial / UNFINISHED).unlink()
    with contextlib.suppress(OSError):
        partial.rmdir()


def put_in_place(partial: Path, folder: Path, own: Collection[str] | None = ()) -> None:
    """Rename the complete, synced `partial` to `folder`. An older one there stays until the new one has its name.

    Of the older one only `own`, relative paths, is deleted; None: all that the new one has too. The rest moves into
    the new one. Raises FileExistsError, before it changes anything, where the new one has a file of that rest.
    """
    new = set(files_in(partial)) - {UNFINISHED}
    others = set(files_in(folder)) - (new if own is None else set(own)) if folder.exists() else set()
    if clash := sorted(others & new):
        raise FileExistsError(f"{folder / clash[0]} was not written by this run: move it away")
    for inside in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
        sync_folder(inside)
    old = folder.with_name(f".{folder.name}.old")
    fault_point()
    if folder.exists():
        os.replace(folder, old)
        fault_point()
    os.replace(partial, folder)
    fault_point()
    (folder / UNFINISHED).unlink(missing_ok=True)
    sync_folder(folder.parent)
    if old.exists():
        discard(old, set(files_in(old)) - others, into=folder)


def discard(folder: Path, own: Collection[str], *, into: Path | None = None) -> None:
    """Delete `own`, relative paths, in this order, and the folders that it leaves empty; the rest moves to `into`."""
    for name in own:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    if into is not None:
        for name in files_in(folder):
            if not os.path.lexists(into / name):
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(folder / name, into / name)
    inside = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    remove_empty([*sorted(inside, reverse=True), folder])
