"""One contestant in a process of its own: `python -m benchmark.worker SPEC.json CONTESTANT`.

It loads, says so, and then runs one iteration whenever it is asked for. Memory is the peak beyond the loaded weights:
of a GPU as torch counts it, of the process as the kernel does. Resident memory is reset (/proc/self/clear_refs) once
everything is loaded and every weight has been read once, so that what a loader left behind does not count; where the
kernel has no such switch the peak since the start counts.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.jobs import Contestant, Job, overrides, read_job


class Stepper:
    """Called by a contestant when it is loaded and after every iteration; both block until the next is wanted.

    Seconds run from the request to the end of the iteration, all that lies between included. The process ends when
    the pipe closes.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print goes to the log
        self._asked, self._loaded = 0.0, 0
        self.phases: dict[str, float] = {}

    def ready(self) -> None:
        import torch

        gc.collect()
        held = weights()
        for weight in held:  # weights are mapped from their file until something reads them
            weight.sum()
        self.now()
        self._loaded = torch.cuda.memory_allocated() if self._cuda else status_bytes("VmRSS")
        sizes = [(weight.untyped_storage().nbytes(), weight.requires_grad) for weight in held]
        trained = sum(size for size, learns in sizes if learns)
        self._answer(weight_bytes=sum(size for size, _ in sizes), trained_bytes=trained)

    def done(self, phases: Mapping[str, float]) -> None:
        """`phases`: seconds of generate, score, forward and update."""
        import torch

        seconds = self.now() - self._asked
        peak = torch.cuda.max_memory_allocated() if self._cuda else status_bytes("VmHWM")
        self._answer(seconds=seconds, phases=phases, beyond_bytes=peak - self._loaded)

    def _answer(self, **message: Any) -> None:
        """Say it, and go on when the next iteration is wanted; peak memory counts from there."""
        import torch

        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()
        if not sys.stdin.readline():
            os._exit(0)  # nothing to save, and no reason to wait for any library's farewell
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._asked = time.perf_counter()

    def now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last time."""
        taken, self.phases = self.phases, {}
        return taken

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added to the phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.phases[phase] = self.phases.get(phase, 0.0) + self.now() - start

        return call


def weights() -> list[Any]:
    """Every parameter and buffer of the process, shared ones once."""
    import torch

    modules = [item for item in gc.get_objects() if isinstance(item, torch.nn.Module)]
    tensors = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    return list({tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}.values())


def status_bytes(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; 0 where there is no /proc."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def run_ours(job: Job, contestant: Contestant, folder: Path, data: str, device: str, stepper: Stepper) -> None:
    """`train` as the command calls it; only the tracker is a subclass, which waits before the first and after each."""
    from apa_cli.config.compose import compose_train
    from apa_cli.tracking.samples import Sample
    from apa_cli.tracking.tracker import Tracker
    from apa_cli.training import run as training

    class SteppedTracker(Tracker):
        started = False

        def phase(self, name: str, done: int = 0, total: int = 0) -> None:
            if name == "generate" and not self.started:
                self.started = True
                stepper.ready()
            super().phase(name, done, total)

        def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
            super().log(iteration, metrics, samples)
            stepper.done({name: metrics[f"time/{name}"] for name in ("generate", "score", "forward", "update")})

    training.Tracker = SteppedTracker  # type: ignore[misc]
    if contestant.plain:
        training._packs = lambda *_: False  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as scratch:
        words = overrides(job, contestant, str(folder), data, device, f"{scratch}/run")
        training.train(compose_train(words), words)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job, contestant = read_job(spec["job"]), Contestant(**json.loads(sys.argv[2]))
    folder, device = Path(spec["folder"]), spec["device"]
    stepper = Stepper(device)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch

    torch.set_num_threads(spec["threads"])
    if contestant.kind == "ours":
        return run_ours(job, contestant, folder, spec["data"], device, stepper)
    from benchmark import rivals

    run = {"trl_ppo": rivals.run_ppo, "trl_grpo": rivals.run_grpo}[contestant.kind]
    run(job, folder, device, stepper)


if __name__ == "__main__":
    main()
