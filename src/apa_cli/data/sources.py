"""Where data.path leads: a file, several, a folder of save_to_disk, the built-in task or the Hub."""

from __future__ import annotations

import difflib
import glob
import os
import re

from apa_cli.assets.resolve import resolve_path
from apa_cli.data.files import file_suffix, known_suffixes, read_files
from apa_cli.data.hub import HUB_ID, is_saved, read_hub, read_saved
from apa_cli.data.table import Draw, Table
from apa_cli.errors import UserError

# Never the name of a data set, and no kind of file that is read here: pickles, archives, spreadsheets and the like.
FOREIGN_SUFFIXES = (
    *(".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib", ".arrow", ".feather", ".h5", ".hdf5"),
    *(".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".xls", ".xlsx", ".ods", ".db", ".sqlite"),
    *(".yaml", ".yml", ".toml", ".xml", ".html", ".md", ".py", ".doc", ".docx", ".pdf", ".log", ".ndjson"),
)


def read_source(
    path: str,
    *,
    key: str,
    subset: str | None,
    split: str,
    split_key: str,
    prompt_column: str,
    revision: str | None = None,
    draw: Draw | None = None,
) -> Table:
    """The rows behind a path, or those that `draw` chooses; `key` is the config key it was given under.

    What exists on disk is a file or a folder, whatever its name looks like. Raises UserError.
    """
    local = os.path.expanduser(resolve_path(path))
    if os.path.exists(local) and not os.path.isfile(local) and not os.path.isdir(local):
        raise UserError(key, f"{path} is not a regular file", "write the prompts to a file")
    if os.path.isdir(local) and is_saved(local):
        table = read_saved(local, source=path, split=split, split_key=split_key, draw=draw)
    elif os.path.isdir(local):
        table = read_files(_shards(local, path, key), source=path, prompt_column=prompt_column, draw=draw)
    elif os.path.isfile(local):
        table = read_files({path: local}, source=path, prompt_column=prompt_column, draw=draw)
    elif glob.has_magic(local):
        found = sorted(name for name in glob.glob(local, recursive=True) if os.path.isfile(name))
        if not found:
            raise UserError(key, f"no file is named {path}", "check the pattern")
        table = read_files({name: name for name in found}, source=path, prompt_column=prompt_column, draw=draw)
    elif os.path.islink(local):
        raise UserError(key, f"{path} is a link to {os.readlink(local)}, which is not there", "mend the link")
    elif file_suffix(local) or not HUB_ID.fullmatch(path):
        raise UserError(key, f"there is no file {path}", _nearest_file(local))
    elif path.lower().endswith(FOREIGN_SUFFIXES):
        raise UserError(key, f"{path} is not a kind of file that is read", f"use {known_suffixes()}, or a Hub data set")
    else:
        table = read_hub(path, key=key, subset=subset, split=split, split_key=split_key, revision=revision, draw=draw)
    if not table.rows:
        raise UserError(path, "holds no prompts", "give it at least one row")
    return table


def _shards(folder: str, path: str, key: str) -> dict[str, str]:
    """The data files of a folder that are parts of one set: they differ in nothing but numbers. Raises UserError."""
    inside = sorted(name for name in os.listdir(folder) if file_suffix(name) and not name.startswith("."))
    if len({re.sub(r"\d+", "0", name) for name in inside}) == 1:
        return {os.path.join(path, name): os.path.join(folder, name) for name in inside}
    if not inside:
        saved = sorted(name for name in os.listdir(folder) if is_saved(os.path.join(folder, name)))
        raise UserError(key, f"{path} is a folder", f"name {f'{os.path.join(path, saved[0])}' if saved else 'a file'}")
    several = f", or several as in '{os.path.join(path, '*' + (file_suffix(inside[0]) or ''))}'"
    remedy = f"name a file in it, such as {os.path.join(path, inside[0])}{several}"
    raise UserError(key, f"{path} is a folder of files that are not parts of one set", remedy)


def _nearest_file(path: str) -> str:
    """A remedy for a missing file: the name beside it that is spelt most alike."""
    folder, name = os.path.split(path)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
        if not name:
            break
    try:
        names = sorted(os.listdir(folder or "."))
    except OSError:
        names = []
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {os.path.join(folder, matches[0])}?"
    return f"check the path (the current folder is {os.getcwd()})"
