"""The words of the command line: each is checked against the schema, and rewritten for Hydra. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from apa_cli.config.keys import SWEEP, all_keys, groups, is_component, value_type
from apa_cli.config.sources import absolute_path, is_path, quoted
from apa_cli.config.values import check_name, check_value
from apa_cli.errors import UserError

_OF_COMPONENT = re.compile(r"^\+{0,2}((?:evaluation\.)?reward\.components)\.([A-Za-z][\w-]*)[.=]")


def choices() -> tuple[str, ...]:
    """What takes the name of a file: objective=ppo, config=mine.yaml."""
    return (*groups(), "config", SWEEP)


def prepared(words: Sequence[str], *, several: bool = False) -> list[str]:
    """The same for Hydra: files in full, ~ as the home folder, text as it was written, rewards by name begun.

    `several`: a key may have several values, as in a sweep. Preparing twice changes nothing.
    Raises UserError for the first word that is wrong.
    """
    result: list[str] = []
    for word in words:
        word = _prepared(word, several)
        if found := _OF_COMPONENT.match(word):
            # Hydra adds no key to an entry that is missing. One that a recipe has already stays as it is, and a +
            # that asks for a new one is left out.
            begin = f"{found[1]}={{{found[2]}:{{}}}}"
            result += [begin] if begin not in result else []
            word = word.lstrip("+")
        result.append(word)
    return result


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
    if not key or (not equals and not word.startswith("~")):
        near = f"did you mean {f'config={word}' if is_path(word) else f'{word}=VALUE'}?"
        if not (is_path(word) or word in choices() or word in all_keys()):
            near = "overrides look like objective.kl_lambda=0.1; options come with dashes, such as -m"
        raise UserError(word, "not KEY=VALUE", near)
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        remedy = "put quotes around the value, inside those of the shell: KEY='\"the value\"'"
        raise UserError(key.lstrip("+~") or word, f"cannot read the value {value!r}", remedy) from error


def _prepared(word: str, several: bool) -> str:
    key, _, value = word.partition("=")
    if key == "config":
        word = _with_full_paths(value)
    elif key.lstrip("+") == "output_dir" and value.strip("'\"").startswith("~"):
        word = f"{key}={quoted(os.path.expanduser(value.strip(chr(39) + chr(34))))}"
    override = parse(word)
    name = override.key_or_group
    if name.startswith(("hydra.", "hydra/")):
        return word
    sweeps = override.is_sweep_override()
    if sweeps and not several:
        remedy = "add -m to run each of them, or quote the value to keep it as one"
        if name in all_keys() and all_keys()[name].type is list:
            remedy = f"write {name}=[{value}]"
        raise UserError(name, f"several values ({value})", remedy)
    own = name not in choices() and (check_name(name) or is_component(name))
    if override.is_delete():
        if own:
            return word
        raise UserError(name, "cannot be deleted", "leave out the ~; set it to another choice or value")
    if sweeps:
        return word
    given = override.value()
    if name in choices():
        if not (isinstance(given, str) and given):
            remedy = f"give one: {name}=CHOICE, which apa-train --help lists; to run each of several: -m {name}=A,B"
            raise UserError(name, f"{value} is not the name of one choice", remedy)
        return word
    check_value(name, given)
    as_text = value_type(name) is str and isinstance(given, (bool, int, float))
    return f"{word.partition('=')[0]}='{value}'" if as_text else word  # 1e5 would be written back as 100000.0


def _with_full_paths(names: str) -> str:
    """The files in `config=a.yaml,NAME` in full, so that a job started elsewhere finds them too."""
    if not names or names[0] in "[{" or "(" in names:  # a list or a function of Hydra's grammar: left as it is
        return f"config={names}"
    whole = is_path(names) and Path(absolute_path(names)).is_file()  # a sweep's folders have commas in their names
    parts = [names] if whole else [part.strip().strip("'\"") for part in names.split(",")]
    return "config=" + ",".join(quoted(absolute_path(part)) if is_path(part) else part for part in parts)
