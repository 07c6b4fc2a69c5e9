"""The device and precision of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from apa_cli.config.schema import PolicyConfig
from apa_cli.errors import UserError

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
CGROUPS = (  # limit, statistics, and the statistic that cannot be reclaimed: version 2, version 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat"), "anon"),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.stat"), "total_rss"),
)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The device and precision of a run.

    bf16 keeps trained weights and optimizer states in float32 and computes under autocast: at RLHF learning rates
    (1e-6) an update is below bf16's resolution and would be lost. Frozen weights are held in bf16. policy.dtype
    overrides this for policy and critic.
    """

    device: torch.device
    bf16: bool

    @property
    def frozen_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_bytes(self) -> int:
        """Peak memory of the device since the start: allocated on CUDA, resident on CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def resident_bytes(self) -> int:
        """What this process holds now of the memory that models are loaded into; 0 on CUDA, or if unknown."""
        return 0 if self.device.type == "cuda" else (_number(STATUS, "VmRSS:") or 0) * 1024

    def available_bytes(self) -> int | None:
        """Free memory on CUDA; on a CPU what Linux and the control group leave. None if unknown."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        available = _number(MEMINFO, "MemAvailable:")
        bounds = [] if available is None else [available * 1024]
        for limit, statistics, held in CGROUPS:
            if (most := _number(limit)) is not None:
                bounds.append(most - (_number(statistics, held) or 0))
        return min(bounds, default=None)

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        threads = "" if self.device.type == "cuda" else f", {torch.get_num_threads()} threads"
        return f"{name}{threads}, {'bf16' if self.bf16 else 'fp32'}"


def _number(path: Path, name: str | None = None) -> int | None:
    """The file's first number, or the one after `name`; None for "max" and for a missing file."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return int(lines[0][0] if name is None else next(words[1] for words in lines if words[:1] == [name]))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def trained_dtype(config: PolicyConfig) -> torch.dtype:
    """The dtype of trained weights, including the critic's."""
    return torch.bfloat16 if config.dtype == "bf16" else torch.float32


def model_dtype(config: PolicyConfig, runtime: Runtime) -> torch.dtype:
    """The dtype of the policy without its adapter and of a reference: the same in both, so that KL starts at 0."""
    if config.dtype == "auto" and config.adapter.enabled:
        return runtime.frozen_dtype
    return trained_dtype(config)


def select_runtime(device: str, precision: str) -> Runtime:
    """Resolve `device` (auto | cpu | cuda) and `precision` (fp32 | bf16).

    Raises UserError if CUDA is requested and absent, or if the GPU has no bf16.
    """
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda" and not torch.cuda.is_available():
        raise UserError("device", "cuda asked for, but torch sees no CUDA device", "use device=auto or device=cpu")
    if precision == "bf16" and chosen == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("precision", "this GPU has no bf16", "use precision=fp32")
    return Runtime(device=torch.device(chosen), bf16=precision == "bf16")
