"""The C library's heap, where a CPU's tensors live. Glibc alone has these calls; elsewhere they do nothing.

By default glibc learns from the largest tensors to keep every size on its heap, where they leave holes that tensors of
other sizes cannot use: the peak then rises with the number of minibatches, each of which needs the same. Measured in
docs/performance.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import time
from collections.abc import Callable, Iterator

APART = 4 << 20  # bytes from which a tensor that no hole fits is mapped by itself, and unmapped when it is freed
TOGETHER = 32 << 20  # what glibc's own learning comes to
KEPT = 64 << 20  # free bytes at the heap's end that are not given back: otherwise a fixed threshold makes it 128 KiB
_given_back = 0.0  # time.monotonic() of the last time
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@contextlib.contextmanager
def large_tensors_apart() -> Iterator[None]:
    """Inside, tensors from APART bytes on stay off the heap, unless the environment has fixed a threshold. Where much
    is made and freed in a short time, as in decoding, they are quicker on it."""
    chosen = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    mallopt = _glibc("mallopt")
    if mallopt is None or any(name in os.environ for name in chosen):
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, APART)
    mallopt(_M_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, TOGETHER)


def give_back(*, every: float = 0.0) -> None:
    """Hand freed memory back to the system, the heap's holes included; a second time only after `every` seconds, since
    it takes some milliseconds, and more to get back what is needed again."""
    global _given_back
    trim = _glibc("malloc_trim")
    if trim is not None and time.monotonic() - _given_back >= every:
        trim(0)
        _given_back = time.monotonic()


@functools.cache
def _glibc(name: str) -> Callable[..., int] | None:
    try:
        process = ctypes.CDLL(None)
        found: Callable[..., int] | None = getattr(process, name, None)
        return found if hasattr(process, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # no such thing as the process's own symbols
        return None
