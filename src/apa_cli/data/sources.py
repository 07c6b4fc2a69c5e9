"""Where data.path leads: a file, the built-in task or the Hub."""

from __future__ import annotations

import difflib
import os

from apa_cli.assets.resolve import resolve_path
from apa_cli.data.files import file_suffix, known_suffixes, read_file
from apa_cli.data.hub import HUB_ID, read_hub
from apa_cli.data.table import Table
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
) -> Table:
    """All rows behind a path; `key` is the config key it was given under.

    What exists on disk is a file, whatever its name looks like. Raises UserError.
    """
    local = os.path.expanduser(resolve_path(path))
    if os.path.isdir(local):
        inside = sorted(name for name in os.listdir(local) if file_suffix(name))
        remedy = f"name a file in it, such as {os.path.join(path, inside[0])}" if inside else "name a file"
        raise UserError(key, f"{path} is a folder", remedy)
    if os.path.exists(local) and not os.path.isfile(local):
        raise UserError(key, f"{path} is not a regular file", "write the prompts to a file")
    if os.path.isfile(local):
        table = read_file(local, source=path, prompt_column=prompt_column)
    elif file_suffix(local) or not HUB_ID.fullmatch(path):
        raise UserError(key, f"there is no file {path}", _nearest_file(local))
    elif path.lower().endswith(FOREIGN_SUFFIXES):
        raise UserError(key, f"{path} is not a kind of file that is read", f"use {known_suffixes()}, or a Hub data set")
    else:
        table = read_hub(path, key=key, subset=subset, split=split, split_key=split_key, revision=revision)
    if not table.rows:
        raise UserError(path, "holds no prompts", "give it at least one row")
    return table


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
