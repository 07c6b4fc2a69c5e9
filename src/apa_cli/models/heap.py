"""The C library's heap, where a CPU's tensors live. Glibc alone has these calls; elsewhere they do nothing.

By default glibc learns from the largest tensors to keep every size on its heap, where they leave holes that tensors of
other sizes cannot use: the peak then rises with the number of minibatches, each of which needs the same. Measured in
docs/performance.md.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

MMAP_THRESHOLD = 4 << 20  # bytes from which a tensor that no hole fits is mapped by itself, and unmapped when freed
TRIM_THRESHOLD = 64 << 20  # free bytes at the heap's end that are kept: a fixed MMAP_THRESHOLD alone makes it 128 KiB
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@functools.cache
def settle() -> None:
    """Fix both thresholds for this process, unless its environment sets one."""
    chosen = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    mallopt = _glibc("mallopt")
    if mallopt is not None and not any(name in os.environ for name in chosen):
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def give_back() -> None:
    """Hand freed memory back to the system, the heap's holes included. It takes some milliseconds, and more to get back
    what is needed again."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _glibc(name: str) -> Callable[..., int] | None:
    try:
        process = ctypes.CDLL(None)
        found: Callable[..., int] | None = getattr(process, name, None)
        return found if hasattr(process, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # no such thing as the process's own symbols
        return None
