"""The words of the command line: each is checked against the schema, and rewritten for Hydra. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from apa_cli.config.keys import SWEEP, all_keys, groups, is_component, sections, value_type
from apa_cli.config.sources import absolute_path, is_path, quoted
from apa_cli.config.values import check_name, check_value
from apa_cli.errors import UserError

LONGEST_KEY = 200  # characters
_LIKE = "overrides look like objective.kl_lambda=0.1"
_OF_COMPONENT = re.compile(r"^\+{0,2}((?:evaluation\.)?reward\.components)\.([A-Za-z][\w-]*)[.=]")


def choices() -> tuple[str, ...]:
    """What takes the name of a file: objective=ppo, config=mine.yaml."""
    return (*groups(), "config", SWEEP)


def prepared(words: Sequence[str], *, several: bool = False, folders: Sequence[str] = ()) -> list[str]:
    """The same for Hydra: files in full, ~ as the home folder, text as it was written, rewards by name begun.

    `several`: a key may have several values, as in a sweep. `folders` of the user's own may hold groups of files.
    Raises UserError for the first word that is wrong. Preparing twice changes nothing.
    """
    return _begun([_prepared(word, several, folders) for word in words])


def repeated(words: Sequence[str]) -> list[str]:
    """A line for each key that is given twice: its last value holds, so that a script may append to a common list.

    Raises UserError for a choice of files: both would be read.
    """
    values: dict[str, str] = {}
    notes: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        name = key.lstrip("+")
        if (before := values.get(name, value)) != value:
            if name in choices():
                raise UserError(name, f"given twice ({before}, {value})", "keep one of the two")
            notes.append(f"note: {name} is given twice ({before}, {value}): {value} holds")
        values[name] = value
    return notes


def parse(word: str) -> Override:
    """Raises UserError."""
    key, equals, value = word.partition("=")
    name = key.lstrip("+~")
    if equals and not name:
        raise UserError(word, "no key before the =", _LIKE)
    if len(name) > LONGEST_KEY:
        raise UserError(f"{name[:40]}…", f"{len(name):,} characters, too many for a key", _LIKE)
    if not equals and not word.startswith("~"):
        near = f"did you mean {f'config={word}' if is_path(word) else f'{word}=VALUE'}?"
        known = is_path(word) or word in choices() or word in all_keys()
        raise UserError(word, "not KEY=VALUE", near if known else f"{_LIKE}; options come with dashes, such as -m")
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        remedy = "put quotes around the value, inside those of the shell: KEY='\"the value\"'"
        raise UserError(name, f"cannot read the value {value!r}", remedy) from error


def _prepared(word: str, several: bool, folders: Sequence[str]) -> str:
    key, _, value = word.partition("=")
    if key == "config":
        word = _with_full_paths(value)
    elif key.lstrip("+") == "output_dir" and value.strip("'\"").startswith("~"):
        word = f"{key}={quoted(os.path.expanduser(value.strip(chr(39) + chr(34))))}"
    override = parse(word)
    name = override.key_or_group
    if name.startswith(("hydra.", "hydra/")) or any(_is_group(folder, name) for folder in folders):
        return word
    if override.is_sweep_override() and not several:
        remedy = "add -m to run each of them, or quote the value to keep it as one"
        if name in all_keys() and all_keys()[name].type is list:
            remedy = f"write {name}=[{value}]"
        raise UserError(name, f"several values ({value})", remedy)
    if name in choices():
        _check_choice(override, word)
        return word
    own = check_name(name)
    if override.is_delete():
        if own or is_component(name):
            return word
        raise UserError(name, "cannot be deleted", "leave out the ~; set it to null where it may be null")
    known = all_keys().get(name)
    if override.is_add() and (name in sections() or (known is not None and known.type is not dict)):
        raise UserError(name, "already exists", "leave out the + before it")
    if override.is_sweep_override():
        return word
    given = override.value()
    check_value(name, given)
    as_text = value_type(name) is str and isinstance(given, (bool, int, float))
    return f"{word.partition('=')[0]}='{value}'" if as_text else word  # 1e5 would be written back as 100000.0


def _is_group(folder: str, name: str) -> bool:
    return "://" in folder or Path(folder, name).is_dir()


def _with_full_paths(names: str) -> str:
    """The files in `config=a.yaml,NAME` in full, so that a job started elsewhere finds them too."""
    if not names or names[0] in "[{" or "(" in names:  # a list or a function of Hydra's grammar: left as it is
        return f"config={names}"
    whole = is_path(names) and Path(absolute_path(names)).is_file()  # a sweep's folders have commas in their names
    parts = [names] if whole else [part.strip().strip("'\"") for part in names.split(",")]
    return "config=" + ",".join(quoted(absolute_path(part)) if is_path(part) else part for part in parts)


def _check_choice(override: Override, word: str) -> None:
    name, value = override.key_or_group, override.value()
    if override.is_delete():
        raise UserError(word, "a group cannot be deleted", f"choose one of its files: {name}=CHOICE")
    if override.is_add() or override.is_force_add():
        raise UserError(word, "the group already exists", f"leave out the +: {word.lstrip('+')}")
    if isinstance(value, (list, dict)):
        remedy = f"give one: {name}=CHOICE; to run each of several: -m {name}=A,B"
        raise UserError(name, f"one choice, not a list ({override.get_value_string()})", remedy)
    if not override.is_sweep_override() and not (isinstance(value, str) and value):
        remedy = "GROUP=CHOICE takes the name of a choice, which apa-train --help lists"
        raise UserError(word, "not the name of a choice", remedy)


def _begun(words: Sequence[str]) -> list[str]:
    """The same, with an empty entry before the first key of each reward by name: Hydra adds to none that is missing.

    One that a recipe has already stays as it is. A + that asks for a new entry is then one too many, and left out.
    """
    result: list[str] = []
    for word in words:
        if found := _OF_COMPONENT.match(word):
            begin = f"{found[1]}={{{found[2]}:{{}}}}"
            if begin not in result:
                result.append(begin)
            word = word.lstrip("+")
        result.append(word)
    return result
