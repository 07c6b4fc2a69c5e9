"""The words of the command line, looked at before Hydra sees them. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from apa_cli.config import components
from apa_cli.config.keys import SWEEP, groups, value_type
from apa_cli.config.sources import absolute_paths, quoted
from apa_cli.errors import UserError

LONGEST_KEY = 200  # characters
# What Hydra's grammar takes for a number or a truth, and would write back in another way: 1e5 as 100000.0.
_LITERAL = re.compile(r"[+-]?(?=[\d.])[\d_]*\.?[\d_]*(?:e[+-]?\d+)?|[+-]?(?:inf|nan)|true|false", re.IGNORECASE)
_ELSEWHERE = re.compile(r"[,(${]")  # several values, a function, a reference: left to Hydra
_TRUTHS = ("true", "false")


def check_overrides(overrides: Sequence[str]) -> list[str]:
    """Raise UserError for the first word that Hydra would take for something else than was meant.

    Returns a line for each key that is given twice: its last value holds, so that a script may append to a common list.
    """
    values: dict[str, str] = {}
    notes: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        name = key.lstrip("+~")
        if not name and "=" in override:
            raise UserError(override, "no key before the =", "overrides look like objective.kl_lambda=0.1")
        if len(name) > LONGEST_KEY:
            remedy = "overrides look like objective.kl_lambda=0.1"
            raise UserError(f"{name[:40]}…", f"{len(name):,} characters, too many for a key", remedy)
        choice = name in (*groups(), "config", SWEEP)
        if choice:
            _check_choice(override, name, value)
        if value_type(name) is bool and not _ELSEWHERE.search(value) and value.strip("'\" ").lower() not in _TRUTHS:
            raise UserError(name, f"{value!r} is not true or false", "give true or false")
        if key.startswith("~"):
            continue
        if (before := values.get(name, value)) != value:
            if choice:
                raise UserError(name, f"given twice ({before}, {value})", "keep one of the two")
            notes.append(f"note: {name} is given twice ({before}, {value}): {value} holds")
        values[name] = value
    return notes


def _check_choice(override: str, name: str, value: str) -> None:
    if override.startswith("~"):
        raise UserError(override, "a group cannot be deleted", f"choose one of its files: {name}=CHOICE")
    if override.startswith("+"):
        raise UserError(override, "the group is there already", f"leave out the +: {override.lstrip('+')}")
    if value[:1] in ("[", "{"):
        remedy = f"give one: {name}=CHOICE; to run each of several: -m {name}=A,B"
        raise UserError(name, f"one choice, and no list ({value})", remedy)


def prepared(overrides: Sequence[str]) -> list[str]:
    """The same for Hydra: files in full, ~ as the home folder, text as it was written, rewards by name begun."""
    return components.begun(absolute_paths([_as_written(override) for override in overrides]))


def _as_written(override: str) -> str:
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if name == "output_dir" and value.strip("'\"").startswith("~"):
        return f"{key}={quoted(os.path.expanduser(value.strip(chr(39) + chr(34))))}"
    return f"{key}='{value}'" if equals and value_type(name) is str and _LITERAL.fullmatch(value) else override
