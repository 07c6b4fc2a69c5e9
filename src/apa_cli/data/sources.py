"""Rows from whatever data.path names: a file, several, a folder of save_to_disk, the built-in task or the Hub."""

from __future__ import annotations

import difflib
import glob
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from apa_cli.assets.resolve import resolve_path
from apa_cli.data.files import file_suffix, known_suffixes, read_files
from apa_cli.data.hub import HUB_ID, is_saved, read_hub, read_saved
from apa_cli.data.table import Draw, Progress, Table
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from apa_cli.config.schema import DataConfig

# Neither names of data sets nor files that can be read here: pickles, archives, spreadsheets and the like.
FOREIGN_SUFFIXES = (
    *(".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib", ".arrow", ".feather", ".h5", ".hdf5"),
    *(".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".xls", ".xlsx", ".ods", ".db", ".sqlite"),
    *(".yaml", ".yml", ".toml", ".xml", ".html", ".md", ".py", ".doc", ".docx", ".pdf", ".log", ".ndjson"),
)


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


def _files(local: str, path: str, key: str) -> dict[str, str] | None:
    """The data files behind a path, by name; None for a folder of save_to_disk or a data set on the Hub."""
    if os.path.isfile(local):
        return {path: local}
    if os.path.isdir(local):
        return None if is_saved(local) else _shards(local, path, key)
    if os.path.exists(local):
        raise UserError(key, f"{path} is not a regular file", "write the prompts to a file")
    if glob.has_magic(local):
        found = sorted(name for name in glob.glob(local, recursive=True) if os.path.isfile(name))
        if not found:
            raise UserError(key, f"no file is named {path}", "check the pattern")
        return {name: name for name in found}
    if os.path.islink(local):
        raise UserError(key, f"{path} is a link to {os.readlink(local)}, which is not there", "fix the link")
    if file_suffix(local) or not HUB_ID.fullmatch(path):
        raise UserError(key, f"there is no file {path}", _nearest_file(local))
    if path.lower().endswith(FOREIGN_SUFFIXES):
        raise UserError(key, f"{path} is not a kind of file that is read", f"use {known_suffixes()}, or a Hub data set")
    return None


def _shards(folder: str, path: str, key: str) -> dict[str, str]:
    """The data files of a folder, if they are parts of one set: their names differ in numbers only."""
    inside = sorted(name for name in os.listdir(folder) if file_suffix(name) and not name.startswith("."))
    if len({re.sub(r"\d+", "0", name) for name in inside}) == 1:
        return {os.path.join(path, name): os.path.join(folder, name) for name in inside}
    if not inside:
        saved = sorted(name for name in os.listdir(folder) if is_saved(os.path.join(folder, name)))
        raise UserError(key, f"{path} is a folder", f"name {os.path.join(path, saved[0]) if saved else 'a file'}")
    pattern = os.path.join(path, f"*{file_suffix(inside[0])}")
    remedy = f"name a file in it, such as {os.path.join(path, inside[0])}, or several as in '{pattern}'"
    raise UserError(key, f"{path} is a folder of files that are not parts of one set", remedy)


def _nearest_file(path: str) -> str:
    """A remedy for a missing file: the most similar name in the nearest folder that exists."""
    place = Path(path)
    while not os.path.isdir(place.parent):
        place = place.parent
    try:
        names = sorted(os.listdir(place.parent))
    except OSError:
        names = []
    matches = difflib.get_close_matches(place.name, names, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {place.parent / matches[0]}?"
    return f"check the path (the current folder is {os.getcwd()})"
