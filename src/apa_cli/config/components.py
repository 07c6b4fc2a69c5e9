"""Rewards by name on the command line: `reward.components.brevity.weight=0.1`. Imports no torch."""

from __future__ import annotations

import re

_KEY = re.compile(r"^\+{0,2}((?:evaluation\.)?reward\.components)\.([A-Za-z][\w-]*)[.=]")
_BEGINS = re.compile(r"^(?:evaluation\.)?reward\.components=\{[^{}:]+:\{\}\}$")


def begun(overrides: list[str]) -> list[str]:
    """The same, with an empty entry before the first key of each name: Hydra sets nothing in one that is not there.

    One that a recipe has already stays as it is. A + that asks for a new entry is then one too many, and left out.
    """
    result: list[str] = []
    for override in overrides:
        if found := _KEY.match(override):
            begin = f"{found[1]}={{{found[2]}:{{}}}}"
            if begin not in result:
                result.append(begin)
            override = override.lstrip("+")
        result.append(override)
    return result


def short_name(key: str) -> str:
    """The last part of a key, of a component's with its name: form.weight."""
    return key.rpartition(".components.")[2] if ".components." in key else key.rpartition(".")[2]


def only_begins(override: str) -> bool:
    """Whether `begun` has put it there."""
    return _BEGINS.match(override) is not None
