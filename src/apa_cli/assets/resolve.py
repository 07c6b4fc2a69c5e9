"""Paths of the form builtin:NAME: the models and prompts that come with the package."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from apa_cli.errors import UserError

PREFIX = "builtin:"


def builtin_names() -> list[str]:
    """Every folder and file that builtin:NAME can mean, sorted; Python modules are not among them."""
    root = Path(str(files("apa_cli.assets")))
    data = [path.relative_to(root) for path in root.rglob("*.*") if path.is_file() and ".py" not in path.suffix]
    return sorted({part.as_posix() for path in data for part in (path, *path.parents)} - {"."})


def resolve_path(path: str) -> str:
    """The installed folder or file that builtin:NAME means; any other string comes back unchanged.

    Raises UserError when the package holds nothing of that name.
    """
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX).rstrip("/")
    names = builtin_names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4) or names[:1]
        remedy = f"did you mean {PREFIX}{nearest[0]}?" if nearest else "reinstall apa-cli: its assets are missing"
        raise UserError(path, "nothing built in has this name", remedy)
    return str(files("apa_cli.assets").joinpath(*name.split("/")))
