"""Whether a value may stand at its key, asked of files and of the command line before Hydra sees them.

OmegaConf would read 1.5 as the whole number 1, and 2 as true. Imports no torch.
"""

from __future__ import annotations

from typing import Any

from apa_cli.config.keys import (
    COMPONENTS,
    KINDS,
    NAMING_KEY,
    SWEEP,
    all_keys,
    expected,
    find_key,
    is_component,
    nearest_key,
    sections,
)
from apa_cli.errors import UserError


def check_value(name: str, value: Any, file: str = "") -> None:
    """Raise UserError for an unknown key, keys where a value belongs or the reverse, and a value of the wrong type.

    `file` is where it stands; "" is the command line.
    """
    if check_name(name, file):
        return
    at, key = f"{file}: {name}" if file else name, find_key(name)
    if isinstance(value, str) and ("${" in value or value == "???"):  # known once everything is composed
        return
    shown = "null" if value is None else f"'{value}'"
    if len(shown) > 100:
        shown = f"{shown[:99]}…"
    if isinstance(value, dict) and (key is None or name in COMPONENTS):
        for part, inner in value.items():
            check_value(f"{name}.{part}", inner, file)
    elif key is None:
        naming = NAMING_KEY.get(name) or next((key for key in all_keys() if key.startswith(f"{name}.")), f"{name}.KEY")
        meant = value if name in NAMING_KEY and isinstance(value, str) else "VALUE"
        remedy = f"write `{naming}: {meant}`" if file else f"write {naming}={meant}"
        if file and name == "objective":  # whose choices set more than the name
            remedy = f"write `defaults: [{{objective: {meant}}}]`"
        raise UserError(at, f"a group of keys, not a value ({shown})", remedy)
    elif value is None and not key.optional:
        raise UserError(at, "cannot be null", f"give {expected(name)}")
    elif value is not None and not _fits(value, key.type):
        raise UserError(at, f"{shown} is not {KINDS[key.type]}", f"give {expected(name)}")
    elif isinstance(value, list) and not all(_fits(item, key.item) for item in value):
        raise UserError(at, f"{shown} is not a list of {KINDS[key.item].removeprefix('a ')}s", f"give {expected(name)}")


def check_name(name: str, file: str = "") -> bool:
    """Whether the name is of the user's own choosing, below a key that holds such. Raises UserError: unknown."""
    if find_key(name) is not None or name in sections() or is_component(name):
        return False
    parent, at = name, f"{file}: " if file else ""
    while parent := parent.rpartition(".")[0]:
        if (above := find_key(parent)) is not None and parent not in COMPONENTS:
            if above.type is dict:
                return True
            raise UserError(f"{at}{parent}", "a value, not a group of keys", f"give {expected(parent)}")
    if file and name == SWEEP:
        raise UserError(f"{at}{name}", "a choice of files, not a key", "write `defaults: [{sweep: NAME}]`")
    raise UserError(f"{at}{name}", "unknown key", nearest_key(name))


def _fits(value: Any, kind: Any) -> bool:
    """As OmegaConf judges, but that true and false are written so."""
    if isinstance(value, (list, dict)) or kind in (list, dict):
        return isinstance(value, kind)
    if kind is bool:
        return str(value).lower() in ("true", "false")
    if kind not in (int, float):
        return value is not None
    try:
        kind(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, bool) and not (kind is int and isinstance(value, float))
