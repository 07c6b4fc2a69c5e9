"""Peak memory beyond the loaded weights: of the GPU as torch counts it, of the process as the kernel counts it.

Resident memory is reset (/proc/self/clear_refs) once everything is loaded and every weight has been read once, so that
what a loader left behind does not count; where the kernel has no such switch the peak since the start counts.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path


def weights() -> list[object]:
    """Every parameter and buffer of the process, shared ones once."""
    import torch

    modules = [item for item in gc.get_objects() if isinstance(item, torch.nn.Module)]
    found = {}
    for module in modules:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            found[tensor.untyped_storage().data_ptr()] = tensor
    return list(found.values())


class Meter:
    """Says how many bytes the process took at its peak since `reset`, beyond those it held at `start`."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.weight_bytes = self.trained_bytes = self.loaded = 0

    def start(self) -> None:
        import torch

        gc.collect()
        held = weights()
        self.weight_bytes = sum(w.untyped_storage().nbytes() for w in held)  # type: ignore[attr-defined]
        self.trained_bytes = sum(
            w.untyped_storage().nbytes()
            for w in held
            if w.requires_grad  # type: ignore[attr-defined]
        )
        for weight in held:  # weights are mapped from their file until something reads them
            weight.sum()  # type: ignore[attr-defined]
        if self.cuda:
            torch.cuda.synchronize()
            self.loaded = torch.cuda.memory_allocated()
        else:
            self.loaded = status_bytes("VmRSS")
        self.reset()

    def reset(self) -> None:
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def beyond(self) -> int:
        import torch

        peak = torch.cuda.max_memory_allocated() if self.cuda else status_bytes("VmHWM")
        return peak - self.loaded


def status_bytes(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; 0 where there is no /proc."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
