"""How a configuration field declares its default, its unit and its limits, in one place.

The limits are read by `checks.check_fields`, the help by docs/configuration.md and by `--help`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from omegaconf import MISSING


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def text(default: str | None, help: str) -> Any:
    """A string, or null where the annotation allows it."""
    return _field(default, {"help": help})


def required(help: str) -> Any:
    """A value that has no safe default."""
    return _field(MISSING, {"help": help})


def switch(default: bool, help: str) -> Any:
    """True or false."""
    return _field(default, {"help": help})


def items(default: list[Any] | None, help: str) -> Any:
    """A list."""
    return _field(default, {"help": help})


def mapping(default: dict[str, Any], help: str) -> Any:
    """Names that are not known beforehand, and their values or, by the annotation, sections of one kind."""
    return _field(default, {"help": help})


def choice(default: str | None, help: str, *, choices: tuple[str, ...]) -> Any:
    """One of `choices`, or null where the annotation allows it."""
    return _field(default, {"help": help, "choices": choices})


def number(
    default: float | None,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A number within [minimum, maximum], or strictly `above` / `below` a bound; NaN and infinity never pass."""
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    return _field(default, {"help": help, "limits": {k: v for k, v in limits.items() if v is not None}})
