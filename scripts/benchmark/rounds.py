"""The host's end: all contestants of a job alive at once, stepped in turn, so that a noisy hour is noisy for all."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.jobs import Contestant, Job

SCRIPTS = Path(__file__).resolve().parents[1]
PATIENCE = 900  # seconds for one answer


class Process:
    def __init__(self, contestant: Contestant, spec: Path, log: Path, threads: int) -> None:
        self.contestant, self.log = contestant, log
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent / "src")]),
            "OMP_NUM_THREADS": str(threads),
            "GOMP_SPINCOUNT": "10000",  # what apa-train sets for itself: everybody waits alike
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmark.worker", str(spec), json.dumps(asdict(contestant))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=log.parent,
            )

    def answer(self) -> dict[str, Any]:
        """The next message. Raises RuntimeError with the log's last line when the process failed or is stuck."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(PATIENCE) else b""
        if not line:
            self.stop()
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else "no answer")
        message: dict[str, Any] = json.loads(line)
        return message

    def step(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(b"step\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has gone already
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(
    job: Job,
    contestants: Sequence[Contestant],
    *,
    folder: Path,
    data: Path,
    device: str,
    threads: int,
    rounds: int,
    minutes: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """One round to warm up, then up to `rounds`, fewer when `minutes` have passed and two are there.

    Lesser contestants leave after the first.

    Returns, by contestant: weight_bytes, trained_bytes, warm_up and steps; or error.
    """
    results: dict[str, Any] = {}
    alive: list[Process] = []
    with tempfile.TemporaryDirectory() as scratch:
        spec = Path(scratch) / "spec.json"
        facts = {"job": asdict(job), "folder": str(folder), "data": str(data), "device": device, "threads": threads}
        spec.write_text(json.dumps(facts), encoding="utf-8")
        try:
            started = [Process(person, spec, folder / f"{person.name}.log", threads) for person in contestants]
            alive.extend(started)
            for process in started:
                name = process.contestant.name
                try:
                    ready = process.answer()
                except RuntimeError as error:
                    results[name] = {"error": str(error)}
                    alive.remove(process)
                    say(f"{job.name}: {name} failed: {error}")
                    continue
                sizes = {key: ready[key] for key in ("weight_bytes", "trained_bytes")}
                results[name] = {**sizes, "steps": []}
            began = time.perf_counter()
            for number in range(rounds + 1):
                if number > 2 and time.perf_counter() - began > minutes * 60:
                    say(f"{job.name}: {number - 1} rounds in {minutes:g} minutes are enough")
                    break
                for process in list(alive):
                    name = process.contestant.name
                    if process.contestant.lesser and number > 1:
                        alive.remove(process)
                        process.stop()
                        continue
                    try:
                        step = process.step()
                    except RuntimeError as error:
                        results[name] = {"error": str(error)}
                        alive.remove(process)
                        say(f"{job.name}: {name} failed: {error}")
                        continue
                    if number == 0:
                        results[name]["warm_up"] = step
                    else:
                        results[name]["steps"].append(step)
                    label = "warm-up" if number == 0 else f"round {number}"
                    parts = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in step["phases"].items())
                    say(f"{job.name}, {label}: {name} {step['seconds']:.2f} s ({parts}), "
                        f"{step['beyond_bytes'] / 2**20:,.0f} MiB")  # fmt: skip
        finally:
            for process in alive:
                process.stop()
    return results
