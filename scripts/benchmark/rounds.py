"""The host's end: all contestants of a job alive at once, stepped in turn, so that a noisy hour is noisy for all."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.jobs import Contestant, Job

SCRIPTS = Path(__file__).resolve().parents[1]
PATIENCE, MINUTES = 900, 7  # seconds for one answer; minutes of a job's rounds


class Process:
    def __init__(self, contestant: Contestant, spec: Path, log: Path, threads: int) -> None:
        self.contestant, self.log = contestant, log
        places = (SCRIPTS, SCRIPTS.parent / "src", os.environ.get("PYTHONPATH"))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(place) for place in places if place),
            "OMP_NUM_THREADS": str(threads),
            "GOMP_SPINCOUNT": "10000",  # what apa-train sets for itself: everybody waits alike
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "benchmark.worker", str(spec), json.dumps(asdict(contestant))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(command, **pipes, stderr=errors, env=environment, cwd=log.parent)

    def answer(self) -> dict[str, Any]:
        """Raises RuntimeError with the log's last line."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(PATIENCE) else b""
        if not line:
            self.stop()
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else "no answer")
        return dict(json.loads(line))

    def step(self) -> dict[str, Any]:
        self.process.stdin.write(b"step\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # it has gone already
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(
    job: Job, contestants: Sequence[Contestant], *, folder: Path, data: Path, device: str, threads: int, rounds: int
) -> dict[str, Any]:
    """One round to warm up, then up to `rounds`, fewer when MINUTES have passed and two are there.

    Lesser contestants leave after the first. Returns, by contestant: weight_bytes, trained_bytes, warm_up and steps; or
    error.
    """
    results: dict[str, Any] = {}
    alive: dict[str, Process] = {}
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"{time.perf_counter() - began:6.0f} s  {job.name}, {line}", flush=True)

    def ask(name: str, question: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return question()
        except (RuntimeError, OSError) as error:
            results[name] = {"error": str(error)}
            del alive[name]
            say(f"{name} failed: {error}")
            return None

    spec = folder / "spec.json"
    facts = {"job": asdict(job), "folder": str(folder), "data": str(data), "device": device, "threads": threads}
    spec.write_text(json.dumps(facts), encoding="utf-8")
    try:
        for person in contestants:
            alive[person.name] = Process(person, spec, folder / f"{person.name}.log", threads)
        for name, process in list(alive.items()):
            if (ready := ask(name, process.answer)) is not None:
                results[name] = {key: ready[key] for key in ("weight_bytes", "trained_bytes")} | {"steps": []}
        loaded = time.perf_counter()
        for number in range(rounds + 1):
            if number > 2 and time.perf_counter() - loaded > MINUTES * 60:
                say(f"{number - 1} rounds in {MINUTES:g} minutes are enough")
                break
            for name, process in list(alive.items()):
                if process.contestant.lesser and number > 1:
                    alive.pop(name).stop()
                elif (step := ask(name, process.step)) is not None:
                    results[name] |= {"steps": [*results[name]["steps"], step]} if number else {"warm_up": step}
                    parts = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in step["phases"].items())
                    say(f"{f'round {number}' if number else 'warm-up'}: {name} {step['seconds']:.2f} s ({parts}), "
                        f"{step['beyond_bytes'] / 2**20:,.0f} MiB")  # fmt: skip
    finally:
        for process in alive.values():
            process.stop()
    return results
