"""A contestant's end of the pipe: load, say so, then one iteration whenever it is asked for."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

from benchmark.memory import Meter


class Stepper:
    """Called by a contestant when it is loaded and after every iteration; both block until the next is wanted.

    Seconds run from the request to the end of the iteration, all that lies between included. The process ends when
    the pipe closes.
    """

    def __init__(self, device: str) -> None:
        self.meter = Meter(device)
        self._cuda = device == "cuda"
        self._answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print goes to the log
        self._asked = 0.0

    def ready(self) -> None:
        self.meter.start()
        self._say(event="ready", weight_bytes=self.meter.weight_bytes, trained_bytes=self.meter.trained_bytes)
        self._wait()

    def done(self, phases: dict[str, float]) -> None:
        """`phases`: seconds of generate, score, forward and update."""
        self.synchronize()
        seconds = time.perf_counter() - self._asked
        self._say(event="step", seconds=seconds, phases=phases, beyond_bytes=self.meter.beyond())
        self._wait()

    def synchronize(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize()

    def _say(self, **message: Any) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # nothing to save, and no reason to wait for any library's farewell
        self.meter.reset()
        self._asked = time.perf_counter()


class Phases:
    """Seconds by phase, from moments at which one phase gives way to the next."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Any) -> Any:
        """`function`, its seconds added to the phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.add(name, self.now() - start)

        return call

    def now(self) -> float:
        self._stepper.synchronize()
        return time.perf_counter()

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, {}
        return taken
