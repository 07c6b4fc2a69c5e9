"""Read back what wandb recorded offline: the history in a run's own `.wandb` file.

The file is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB that hold records of a checksum (4 bytes), a
length (2), a kind (1) and the data. A record that crosses a block's end is split into first, middle and last pieces.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<4sHB")
PIECE = struct.Struct("<IHB")
BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[bytes]:
    """Serialised records, oldest first. Raises AssertionError where the file is damaged."""
    content = path.read_bytes()
    assert HEADER.unpack_from(content) == (b":W&B", 0xBEE1, 0), f"{path} is no wandb file"
    position, pieces = HEADER.size, b""
    while position + PIECE.size <= len(content):
        left = BLOCK - position % BLOCK
        if left < PIECE.size:  # too little for another piece: padding
            position += left
            continue
        checksum, length, kind = PIECE.unpack_from(content, position)
        data = content[position + PIECE.size : position + PIECE.size + length]
        if len(data) < length:  # still being written
            return
        assert zlib.crc32(bytes([kind]) + data) == checksum, f"{path}: checksum at byte {position}"
        position += PIECE.size + length
        pieces = data if kind in (FULL, FIRST) else pieces + data
        if kind in (FULL, LAST):
            yield pieces


def read_records(run_dir: Path, *, seconds: float = 10.0) -> list[Any]:
    """wandb's records of the offline runs in a run's folder, oldest first: a resumed run has several.

    wandb ends the file shortly after the run: this waits for the record that says so, `seconds` at most.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + seconds
    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        while True:
            content = [Record.FromString(data) for data in records(path)]
            if any(record.WhichOneof("record_type") == "exit" for record in content):
                break
            assert time.monotonic() < deadline, f"{path} was not ended"
            time.sleep(0.05)
        found += content
    return found


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Every logged row with all its values, wandb's own keys (`_step`, …) and media among them."""
    history = [r.history.item for r in read_records(run_dir) if r.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in history]


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """The numbers of every logged row, oldest first, without wandb's own keys."""
    return [
        {
            name: value
            for name, value in row.items()
            if isinstance(value, (int, float)) and name[0] != "_" and "/_" not in name
        }
        for row in read_rows(run_dir)
    ]
