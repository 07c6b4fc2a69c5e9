"""How the folder of a sweep's member is named: after its overrides, never after its place in the grid.

So the same sweep, a larger one or one in another order finds the members that are there already. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from omegaconf import OmegaConf

LONGEST = 120  # characters; file systems end at 255 bytes
# Keys that say where or how a member runs, not what it is.
ELSEWHERE = ("output_dir", "resume", "resume_allow_changes", "sweep", "tracking")
_BEGINS = re.compile(r"^(?:evaluation\.)?reward\.components=\{[^{}:]+:\{\}\}$")  # what `prepared` has put there
_UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)


def register() -> None:
    """Make ${apa_member:OVERRIDES} work in hydra.sweep.subdir."""
    OmegaConf.register_new_resolver("apa_member", member_name, replace=True)


def member_name(overrides: Sequence[str]) -> str:
    """`objective.kl_lambda=0.1,seed=0`: sorted, and without what changes nothing in the result.

    Where that is too long, keys lose their groups and then the end is cut; a hash of the whole stands for both.
    """
    words = (override.lstrip("+").partition("=") for override in overrides if not _BEGINS.match(override))
    parts = {
        key: _readable(value.strip("'\""))
        for key, _, value in words
        if key not in ELSEWHERE and not key.startswith(("hydra.", "hydra/", "tracking."))
    }
    name = ",".join(f"{key}={value}" for key, value in sorted(parts.items()))
    if len(name) <= LONGEST:
        return name or "default"
    short = ",".join(f"{short_name(key)}={value}" for key, value in sorted(parts.items()))
    return f"{short[: LONGEST - 9].rstrip('_,.=-')}-{_hash(name)}"


def short_name(key: str) -> str:
    """The last part of a key, of a component's with its name: form.weight."""
    return key.rpartition(".components.")[2] if ".components." in key else key.rpartition(".")[2]


def _readable(value: str) -> str:
    """A value as it is, where a folder can be called that; otherwise its characters replaced, and a hash.

    Of a path the last part: config=/home/me/mine.yaml becomes config=mine.yaml-1a2b3c4d.
    """
    address = re.match(r"https?:/{1,2}([^/?#]*@)?([^/?#]*)", value.replace("\\:", ":"))
    last = address[2] if address else value.rstrip("/").rsplit("/", 1)[-1]  # the rest of an address may hold a key
    safe = _UNSAFE.sub("_", last)
    return safe if safe == value else f"{safe}-{_hash(value)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
