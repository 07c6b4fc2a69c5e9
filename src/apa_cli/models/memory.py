"""How much memory the device has left."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUPS = (  # (limit, statistics, what of them cannot be given back): version 2, version 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat"), "anon"),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.stat"), "total_rss"),
)


def available_bytes(device: torch.device) -> int | None:
    """Free memory on CUDA; on CPU what Linux calls available, within the control group's limit. None where unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _number(MEMINFO, "MemAvailable:")
    bounds = [available * 1024] if available is not None else []
    for limit, statistics, held in CGROUPS:
        most = _number(limit)
        if most is not None:
            bounds.append(most - (_number(statistics, held) or 0))
    return min(bounds, default=None)


def _number(path: Path, name: str | None = None) -> int | None:
    """The file's number, or the one after `name` on its line; None for "max" and for files that are not there."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return int(lines[0][0] if name is None else next(words[1] for words in lines if words[:1] == [name]))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
