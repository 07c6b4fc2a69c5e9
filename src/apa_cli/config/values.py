"""Whether a value may stand at its key, asked of files and of the command line before Hydra sees them.

Imports no torch.
"""

from __future__ import annotations

from typing import Any

from apa_cli.config.keys import (
    COMPONENTS,
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

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "names and values"}


def check_value(name: str, value: Any, file: str = "") -> None:
    """Raise UserError for an unknown key, keys where a value belongs or the reverse, and a value of the wrong type.

    `file` is where it stands; "" is the command line.
    """
    if check_name(name, file):
        return
    at, key = _at(name, file), find_key(name)
    if isinstance(value, str) and ("${" in value or value == "???"):  # known once everything is composed
        return
    if isinstance(value, dict) and (key is None or name in COMPONENTS):
        for part, inner in value.items():
            check_value(f"{name}.{part}", inner, file)
    elif is_component(name):
        remedy = "write the keys below it, such as path or weight" if file else f"write {name}.KEY=VALUE"
        raise UserError(at, f"holds keys and cannot have a value ({_short(value)})", remedy)
    elif key is None:
        naming = NAMING_KEY.get(name) or next((key for key in all_keys() if key.startswith(f"{name}.")), name)
        meant = _short(value) if name in NAMING_KEY and isinstance(value, str) else "VALUE"
        remedy = f"write `{naming}: {meant}`" if file else f"write {naming}={meant}"
        if file and name == "objective" and meant != "VALUE":  # whose choices set more than the name
            remedy = f"write `defaults: [{{objective: {meant}}}]`"
        raise UserError(at, f"a group of keys, not a value ({_short(value)})", remedy)
    elif value is None:
        if not key.optional:
            raise UserError(at, "cannot be null", f"give {expected(name)}")
    elif isinstance(value, dict) and key.type is not dict:
        raise _holds_no_keys(name, file)
    elif not _fits(value, key.type):
        shown = _short(value) if isinstance(value, list) else f"'{_short(value)}'"
        raise UserError(at, f"{shown} is not {_KINDS.get(key.type, 'text')}", f"give {expected(name)}")
    elif key.type is list:
        for item in value:
            if not isinstance(item, (list, dict)) and not _fits(item, key.item):
                shown = "null" if item is None else f"'{_short(item)}'"
                raise UserError(at, f"holds {shown}, of the wrong type", f"give {expected(name)}")


def check_name(name: str, file: str = "") -> bool:
    """Whether the name is of the user's own choosing, below a key that holds such. Raises UserError: unknown."""
    if find_key(name) is not None or name in sections() or is_component(name):
        return False
    parent = name
    while parent := parent.rpartition(".")[0]:
        if (above := find_key(parent)) is not None and parent not in COMPONENTS:
            if above.type is dict:
                return True
            raise _holds_no_keys(parent, file)
    if file and name == SWEEP:
        raise UserError(_at(name, file), "a choice of files, not a key", "write `defaults: [{sweep: NAME}]`")
    raise UserError(_at(name, file), "unknown key", nearest_key(name))


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


def _holds_no_keys(name: str, file: str) -> UserError:
    key = find_key(name)
    assert key is not None
    what = "a list" if key.type is list else "a value"
    return UserError(_at(name, file), f"{what}, not a group of keys", f"give {expected(name)}")


def _at(name: str, file: str) -> str:
    return f"{file}: {name}" if file else name


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 100 else f"{text[:99]}…"
