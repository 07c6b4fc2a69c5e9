"""Ways to spoil things, each giving a row's `make`."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input.harness import Make, Parts, copy_of

Change = Callable[[Path], None]


def file(name: str, content: str | bytes) -> Make:
    def make(folder: Path, parts: Parts) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))

    return make


def rows(name: str, *records: Any) -> Make:
    """A .jsonl file."""
    return file(name, "".join(json.dumps(record) + "\n" for record in records))


def folder(name: str) -> Make:
    return lambda place, parts: (place / name).mkdir(parents=True)


def both(*makes: Make) -> Make:
    def make(place: Path, parts: Parts) -> None:
        for one in makes:
            one(place, parts)

    return make


def spoilt(part: str, *changes: Change, name: str = "") -> Make:
    """A copy of a part, `policy/` for instance, with something changed in it."""

    def make(place: Path, parts: Parts) -> None:
        copy = copy_of(getattr(parts, part), place / (name or part))
        for change in changes:
            change(copy)

    return make


def without(name: str) -> Change:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def put(name: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))

    return change


def halve(name: str) -> Change:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def flip(name: str) -> Change:
    """One bit in the middle."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


def set_json(name: str, key: str, value: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content[key] = value
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def drop_json(name: str, key: str) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        del content[key]
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def mode(name: str, bits: int) -> Make:
    return lambda place, parts: os.chmod(place / name, bits)


def torn_gzip(content: str) -> bytes:
    return gzip.compress(content.encode("utf-8"))[:-12]
