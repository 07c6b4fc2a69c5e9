"""Rows from whatever data.path names: a file, several, a folder of save_to_disk, the built-in task or the Hub."""

from __future__ import annotations

import difflib
import glob
import os
import re
from typing import TYPE_CHECKING

from apa_cli.assets.resolve import resolve_path
from apa_cli.data.files import file_suffix, read_files
from apa_cli.data.hub import HUB_ID, is_saved, read_hub, read_saved
from apa_cli.data.table import Draw, Progress, Table
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from apa_cli.config.schema import DataConfig, TrainConfig


def read_source(config: DataConfig, *, evaluation: bool = False, seed: int, progress: Progress | None = None) -> Table:
    """The rows of data.path, or for `evaluation` of data.eval_path; data.max_rows of them, drawn by `seed`, if more.

    A path that exists on disk is read from there, whatever its name looks like. Raises UserError.
    """
    key, split_key = ("data.eval_path", "data.eval_split") if evaluation else ("data.path", "data.split")
    path = (config.eval_path or "") if evaluation else config.path
    split = config.eval_split if evaluation else config.split
    draw = Draw(most=config.max_rows, seed=seed, progress=progress)
    local = os.path.expanduser(resolve_path(path))
    files = _files(local, path, key)
    if files is not None:
        table = read_files(files, source=path, prompt_column=config.prompt_column, draw=draw)
    elif os.path.isdir(local):
        table = read_saved(local, source=path, split=split, split_key=split_key, draw=draw)
    else:
        revision = config.revision if not evaluation or config.eval_path == config.path else None
        table = read_hub(
            path, key=key, subset=config.subset, split=split, split_key=split_key, revision=revision, draw=draw
        )
    if not table.rows:
        raise UserError(path, "holds no prompts", "give it at least one row")
    return table


def read_sources(config: TrainConfig) -> list[Table]:
    """The rows of data.path, and those of data.eval_path if it is set. Raises UserError."""
    both = (False, True) if config.data.eval_path is not None else (False,)
    return [read_source(config.data, evaluation=held_out, seed=config.seed) for held_out in both]


def _files(local: str, path: str, key: str) -> dict[str, str] | None:
    """The data files behind a path, by name; None for a folder of save_to_disk or a data set on the Hub."""
    if os.path.isfile(local):
        return {path: local}
    if os.path.isdir(local):
        return None if is_saved(local) else _shards(local, path, key)
    if glob.has_magic(local):
        found = sorted(name for name in glob.glob(local, recursive=True) if os.path.isfile(name))
        if not found:
            raise UserError(key, f"no file is named {path}", "check the pattern")
        return {name: name for name in found}
    if os.path.islink(local):
        raise UserError(key, f"{path} is a link to {os.readlink(local)}, which is not there", "fix the link")
    if file_suffix(local) or not HUB_ID.fullmatch(path):
        folder, name = os.path.split(local)
        names = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
        near = [os.path.join(folder, other) for other in difflib.get_close_matches(name, names, n=1, cutoff=0.5)]
        remedy = f"did you mean {near[0]}?" if near else f"check the path (the current folder is {os.getcwd()})"
        raise UserError(key, f"there is no file {path}", remedy)
    return None


def _shards(folder: str, path: str, key: str) -> dict[str, str]:
    """The data files of a folder, if they are parts of one set: their names differ in numbers only."""
    inside = sorted(name for name in os.listdir(folder) if file_suffix(name) and not name.startswith("."))
    if len({re.sub(r"\d+", "0", name) for name in inside}) != 1:
        example = os.path.join(path, f"*{file_suffix(inside[0])}" if inside else "FILE")
        raise UserError(
            key, f"{path} is a folder without the parts of one set", f"name a file, or several: '{example}'"
        )
    return {os.path.join(path, name): os.path.join(folder, name) for name in inside}
