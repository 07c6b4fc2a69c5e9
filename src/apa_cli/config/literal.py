"""Text with `${` in it, which OmegaConf takes for a reference, written so that it is read back as text."""

from __future__ import annotations

import re
from typing import Any

_REFERENCE = re.compile(r"(\\*)\$\{")


def escaped(value: Any) -> Any:
    """The same (mappings, sequences, plain values), with every `${` in its text meant literally."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return _REFERENCE.sub(lambda found: found[1] * 2 + r"\${", value) if isinstance(value, str) else value
