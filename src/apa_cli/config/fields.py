"""How a configuration field declares its default, its unit and its limits, in one place.

The limits are read by `checks.check_fields`, the help by docs/configuration.md and by `--help`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from omegaconf import MISSING

# What is wrong with a configuration: the key, the problem and the remedy.
Wrong = tuple[str, str, str]


def _field(default: Any, **metadata: Any) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def plain(default: Any, help: str) -> Any:
    """A string, a truth value, a list, or names and values; null where the annotation allows it."""
    return _field(default, help=help)


def required(help: str) -> Any:
    """A value that has no safe default."""
    return _field(MISSING, help=help)


def choice(default: str | None, help: str, *, choices: tuple[str, ...]) -> Any:
    """One of `choices`, or null where the annotation allows it."""
    return _field(default, help=help, choices=choices)


def number(default: float | None, help: str, **limits: float) -> Any:
    """A number within [minimum, maximum], or strictly `above` / `below` a bound; NaN and infinity never pass."""
    return _field(default, help=help, limits=limits)
