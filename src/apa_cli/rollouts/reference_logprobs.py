"""Reference log-probs of a data set of logged responses, computed once and cached on disk between runs."""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from apa_cli.data.prompts import Prompt
from apa_cli.files import new_file

KIND = "apa-cli reference log-probs 1"
DISK_ERRORS = (OSError, SafetensorError)


@dataclass(frozen=True, kw_only=True)
class ReferenceLogprobs:
    """log π_ref of each counted token of every logged response, float32 nats."""

    flat: Tensor  # concatenated responses
    starts: Sequence[int]  # of each response in `flat`, then the end

    def of(self, index: int) -> Tensor:
        return self.flat[self.starts[index] : self.starts[index + 1]]


def cache_folder(chosen: str | None) -> Path:
    if chosen is not None:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "apa-cli"


def cache_key(model: str, rows: Sequence[Prompt], **circumstances: object) -> str:
    """SHA-256 of the model's fingerprint, all token ids in order, and `circumstances` that affect the numbers.

    The ids reflect the tokenizer and the limits on prompts and responses.
    """
    digest = hashlib.sha256(f"{KIND}\n{model}\n{sorted(circumstances.items())}\n".encode())
    for row in rows:
        assert row.logged is not None
        for ids in (row.token_ids, row.logged.token_ids):
            digest.update(array("q", (len(ids), *ids)).tobytes())
    return digest.hexdigest()


def reference_logprobs(
    rows: Sequence[Prompt],
    key: str,
    folder: Path,
    compute: Callable[[Sequence[Prompt]], list[Tensor]],
    *,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> ReferenceLogprobs:
    """Read the file of this key, or call `compute`, which returns (T,) for each row, and write the file.

    A damaged file is replaced with a warning; a file that cannot be written is a warning.
    """
    starts = [0, *accumulate(len(row.logged.token_ids) for row in rows if row.logged is not None)]
    file = folder / f"reference_{key[:32]}.safetensors"
    if file.is_file():
        try:
            with safe_open(file, framework="pt") as opened:
                facts, flat = opened.metadata() or {}, opened.get_tensor("logprobs")
            if (facts.get("key"), facts.get("sha256"), len(flat)) != (key, _checksum(flat), starts[-1]):
                raise OSError("it is of other data, or its checksum is wrong")
            note(f"reference log-probs of {len(rows):,} logged responses, from {file}")
            return ReferenceLogprobs(flat=flat, starts=starts)
        except DISK_ERRORS as error:
            warn(f"{file} is damaged ({' '.join(str(error).split())[:200]}), and is made again")
    began = time.perf_counter()
    flat = torch.cat(compute(rows)).float().cpu().contiguous()
    note(f"reference log-probs of {len(rows):,} logged responses, made in {time.perf_counter() - began:.1f} s")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(file) as beside:
            save_file({"logprobs": flat}, beside, {"key": key, "sha256": _checksum(flat)})
        note(f"kept in {file}")
    except DISK_ERRORS as error:
        warn(f"reference log-probs could not be kept ({error}): the next run makes them again")
    return ReferenceLogprobs(flat=flat, starts=starts)


def _checksum(flat: Tensor) -> str:
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()
