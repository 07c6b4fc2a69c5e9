"""The manifest of a checkpoint: the size and SHA-256 of each of its files. Imports no torch."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath

from apa_cli.errors import UserError
from apa_cli.files import UNFINISHED, files_in, write_text

MANIFEST = "manifest.json"
REMEDY = "give another checkpoint of the run"


def write_manifest(folder: Path) -> None:
    """Write manifest.json with size and SHA-256 of every file below `folder`, and sync all to disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != UNFINISHED):
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write_text(folder / MANIFEST, json.dumps({"format": 1, "files": files}, indent=2))


def check_manifest(folder: Path, key: str) -> list[str]:
    """Files in the checkpoint that its manifest does not list, which nothing may read: see `listed_only`.

    Raises UserError, naming `key`, unless every listed file is there and as it was written.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
        if not entries:
            raise ValueError("it names no files")
    except FileNotFoundError:
        raise UserError(key, f"{folder} has no {MANIFEST}: it is half-written or no checkpoint", REMEDY) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise UserError(key, f"{folder / MANIFEST} cannot be read ({error})", REMEDY) from None
    try:
        for name, (size, digest) in entries.items():
            _check_file(folder, name, size, digest, key)
    except OSError as error:
        raise UserError(key, f"{error.filename or folder} cannot be read: {error.strerror}", REMEDY) from None
    return _unlisted(folder, entries)


def _unlisted(folder: Path, listed: Collection[str]) -> list[str]:
    return [name for name in files_in(folder) if name not in (*listed, MANIFEST, UNFINISHED)]


def warn_of_unlisted(folder: Path, names: Sequence[str], warn: Callable[[str], None]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warn(f"{folder.name} holds {', '.join(names[:3])}{more}, not of its manifest: ignored")


def listed_only(folder: Path) -> Path:
    """The checkpoint for a library that reads whatever lies in a folder: where it holds more than its manifest lists,
    a temporary folder of links to what it lists. The manifest has been checked."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    if not any(name.startswith(("policy/", "value/")) for name in _unlisted(folder, listed)):
        return folder
    view = Path(tempfile.mkdtemp(prefix=f"apa_{folder.name}_"))
    atexit.register(shutil.rmtree, view, ignore_errors=True)
    for name in listed:
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).symlink_to((folder / name).resolve())
    return view


def _check_file(folder: Path, name: str, size: int, digest: str, key: str) -> None:
    path, inside = folder / name, PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(key, f"the manifest of {folder} names {name}, outside its folder", "do not use it")
    if str(inside) != name or "\0" in name:
        raise UserError(key, f"the manifest of {folder} names {name!r}, which is no file's name", REMEDY)
    if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(key, f"{path} is a link that leads out of the checkpoint", "do not use it")
    if not path.is_file():
        raise UserError(key, f"{folder} lacks {name}", REMEDY)
    if path.stat().st_size != size or sha256_of(path) != digest:
        raise UserError(key, f"{path} is damaged: not as it was written", REMEDY)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
