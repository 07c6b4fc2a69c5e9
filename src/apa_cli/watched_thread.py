"""Call functions that may never return in a thread that can be abandoned. Imports torch only when calling."""

from __future__ import annotations

import contextvars
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import FrameType, TracebackType
from typing import Any

from apa_cli import watchdog

ABANDONED = "abandoned call"  # name of an abandoned thread


class CallTimeoutError(Exception):
    """The call did not return in time. The traceback is where it was."""


class CallError(Exception):
    """The call raised the cause, perhaps SystemExit or KeyboardInterrupt."""


class WatchedThread:
    """Call functions one after another in a single daemon thread, so that thread-local state is kept between calls.

    Gradient mode, GPU and context variables are those of the caller.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        """Return `function()`. Raises CallError if it raises, and CallTimeoutError after `seconds`.

        After a timeout or a signal the thread is abandoned, and the next call gets a new one.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._calls,), name=self._name, daemon=True)
            self._thread.start()
        thread, answer = self._thread, Future[Any]()
        self._calls.put((_as_here(function), answer))
        try:
            with watchdog.limit(seconds):  # ends the process if this thread cannot run either
                wait([answer], timeout=seconds)
        finally:
            if not answer.done():  # too late, or a signal has come
                thread.name, self._thread, self._calls = ABANDONED, None, queue.SimpleQueue()
        if not answer.done():
            raise CallTimeoutError(f"no answer after {seconds:g} s").with_traceback(_where(thread))
        if (error := answer.exception()) is not None:
            raise CallError from error
        return answer.result()


def any_abandoned() -> bool:
    """Whether an abandoned call still runs."""
    return any(thread.name == ABANDONED for thread in threading.enumerate())


def _serve(calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]) -> None:
    while threading.current_thread().name != ABANDONED:
        function, answer = calls.get()
        try:
            answer.set_result(function())
        except BaseException as error:  # a thread ignores SystemExit
            answer.set_exception(error)
        del function, answer


def _as_here(function: Callable[[], Any]) -> Callable[[], Any]:
    """`function` with this thread's state of torch and Python."""
    import torch

    context = contextvars.copy_context()
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def call() -> Any:
        if gpu is not None:
            torch.cuda.set_device(gpu)
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return context.run(function)

    return call


def _where(thread: threading.Thread) -> TracebackType | None:
    """The stack of a running thread as a traceback."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    trace = None
    while frame is not None:
        trace = TracebackType(trace, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return trace
