"""Memory that was freed goes back to the system, and large pieces stay off the heap where that is asked for."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from apa_cli.models import heap

SOURCE = Path(__file__).resolve().parents[3] / "src"
CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
PREPARE = """
import ctypes
from apa_cli.models import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def mapped_alone(size):  # a piece of this size, after one was freed: on the heap by then, if glibc is left to learn
    libc.free(libc.malloc(size))
    before = libc.mallinfo2().hblks
    libc.malloc(size)
    return libc.mallinfo2().hblks - before
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the calls are glibc's")


def run(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + code],
        env={**kept, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_large_pieces_are_mapped_by_themselves_inside_alone():
    assert run("print(mapped_alone(16 << 20))") == "0"
    inside = "with heap.large_tensors_apart(): print(mapped_alone(16 << 20), mapped_alone(1 << 20))\n"
    assert run(inside) == "1 0"
    assert run(inside + "print(mapped_alone(16 << 20), mapped_alone(33 << 20))").split("\n") == ["1 0", "0 1"]


def test_a_threshold_of_the_environment_is_kept():
    chosen = str(24 << 20)
    code = "with heap.large_tensors_apart(): print(mapped_alone(16 << 20))"
    assert run(code, MALLOC_MMAP_THRESHOLD_=chosen) == "0"


def test_freed_pieces_between_kept_ones_go_back_to_the_system():
    left = run("""
pieces = [libc.malloc(1 << 16) for _ in range(2048)]
for piece in pieces:
    ctypes.memset(piece, 1, 1 << 16)
for i, piece in enumerate(pieces):
    if i % 16:  # the sixteenth, and the last, keep the heap from shrinking
        libc.free(piece)
full = resident()
heap.give_back()
print(full - resident() > 100 << 20)
""")
    assert left == "True"


def test_not_again_before_its_time(monkeypatch):
    trims = []
    monkeypatch.setattr(heap, "_glibc", lambda name: trims.append)
    monkeypatch.setattr(heap, "_given_back", 0.0)
    for now, every in ((10.0, 1.0), (10.9, 1.0), (11.1, 1.0), (11.2, 1.0), (11.3, 0.0), (12.2, 1.0)):
        monkeypatch.setattr(heap.time, "monotonic", lambda now=now: now)
        heap.give_back(every=every)
    assert len(trims) == 3  # at 10, 11.1 and, asked without a time, 11.3
