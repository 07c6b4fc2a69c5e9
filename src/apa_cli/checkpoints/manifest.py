"""The manifest of a checkpoint: the size and SHA-256 of each of its files. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath

from apa_cli.checkpoints.files import write_text
from apa_cli.errors import UserError

MANIFEST = "manifest.json"
CHUNK = 1 << 20


def write_manifest(folder: Path) -> None:
    """Size and SHA-256 of every file below `folder`, as manifest.json in it; all synced to disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write_text(folder / MANIFEST, json.dumps({"format": 1, "files": files}, indent=2))


def check_manifest(folder: Path, key: str) -> None:
    """Raise UserError, naming `key`, unless every file of the checkpoint is there and as it was written."""
    remedy = "give another checkpoint of the run"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
        if not entries:
            raise ValueError("it names no files")
    except FileNotFoundError:
        raise UserError(key, f"{folder} has no {MANIFEST}: it is half-written or no checkpoint", remedy) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise UserError(key, f"{folder / MANIFEST} cannot be read ({error})", remedy) from None
    try:
        _check_files(folder, entries, key, remedy)
    except OSError as error:
        raise UserError(key, f"{error.filename or folder} cannot be read: {error.strerror}", remedy) from None


def _check_files(folder: Path, entries: dict[str, tuple[int, str]], key: str, remedy: str) -> None:
    for name, (size, digest) in entries.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(key, f"the manifest of {folder} names {name}, outside its folder", "do not use it")
        if str(inside) != name or "\0" in name:
            raise UserError(key, f"the manifest of {folder} names {name!r}, which is no file's name", remedy)
        path = folder / name
        if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(key, f"{path} is a link that leads out of the checkpoint", "do not use it")
        if not path.is_file():
            raise UserError(key, f"{folder} lacks {name}", remedy)
        if path.stat().st_size != size or _digest(path) != digest:
            raise UserError(key, f"{path} is damaged: not as it was written", remedy)
    for path in sorted(folder.rglob("*")):  # what was put there later would be loaded with the rest
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in entries and name != MANIFEST and not path.name.startswith("."):
            raise UserError(key, f"{path} is not in the manifest: it was put there later", "move it elsewhere")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
