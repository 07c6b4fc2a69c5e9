"""Whether wandb records online, offline or not at all."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

_ENVIRONMENT_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def has_key(base_url: str, environment: Mapping[str, str]) -> bool:
    """Whether wandb would find credentials for the server without asking anybody."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = environment.get("NETRC")
    candidates = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    for path in candidates:
        try:
            entry = netrc.netrc(path.expanduser()).authenticators(urlsplit(base_url).netloc)
        except (OSError, RuntimeError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False


def choose_mode(configured: str, *, keyed: bool, environment: Mapping[str, str]) -> str:
    """online, offline or disabled. In `auto` the environment's WANDB_MODE decides, then whether there is a key.

    Online without a key becomes offline: wandb would stop and ask for one.
    """
    mode = configured
    if mode == "auto":
        mode = _ENVIRONMENT_MODES.get(environment.get("WANDB_MODE", "").lower(), "online" if keyed else "offline")
    return "offline" if mode == "online" and not keyed else mode
