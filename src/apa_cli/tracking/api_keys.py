"""Keys of servers: read from the environment when they are about to be used, and kept out of what servers say."""

from __future__ import annotations

import os
import re

from apa_cli.errors import UserError
from apa_cli.secrets import REDACTED, redact_text

_KEY = re.compile(r"[!-~]+")  # what a header can carry
_EXCERPT = 200  # characters of a server's own message


def read_key(variable: str, where: str) -> str | None:
    """The key, None where there is none; `where` is the configuration key that names the variable."""
    key = os.environ.get(variable, "").strip()
    if key and not _KEY.fullmatch(key):
        raise UserError(
            where,
            f"the key in {variable} has characters that no key has (blanks, line ends, accents)",
            "export it again",
        )
    return key or None


def excerpt(message: object, key: str | None) -> str:
    """`: message`, short, printable and without the key; nothing for an empty one."""
    text = "" if message is None else str(message)
    text = redact_text(text.replace(key, REDACTED) if key else text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f": {text[:_EXCERPT]}{'…' if len(text) > _EXCERPT else ''}" if text else ""
