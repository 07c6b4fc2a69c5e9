"""Save and exit with code 130 after SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2.

While a rollout is made or judged, nothing changes that a checkpoint does not restore, so a signal ends the work at
once. In an update it waits for the end of the minibatch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from apa_cli.tracking.log import LOGGER
from apa_cli.watchdog import STOPPING, listening

EXIT_CODE = 130
_SHOW_CURSOR = "\x1b[?25h"
_log = logging.getLogger(LOGGER)


class Interrupted(KeyboardInterrupt):
    """A signal to end the run before `deadline`, on the monotonic clock."""

    def __init__(self, name: str, deadline: float) -> None:
        super().__init__(name)
        self.deadline = deadline


class Interrupts:
    """A context manager that handles these signals in the main thread and restores the handlers afterwards.

    Ignored signals, such as SIGHUP under nohup, stay ignored. A second signal, or `grace_seconds` without an end, exits
    at once; if Python cannot, the watchdog does. Without `listen`, no handlers are set.
    """

    def __init__(self, grace_seconds: float, *, listen: bool = True) -> None:
        self.listen = listen and threading.current_thread() is threading.main_thread()
        self.grace_seconds = grace_seconds
        self._received: str | None = None
        self._deadline = 0.0
        self._deferred = False
        self._before: dict[signal.Signals, Any] = {}
        self._over = threading.Event()
        self._watched = contextlib.ExitStack()

    def __enter__(self) -> Interrupts:
        if self.listen:
            heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
            self._watched.enter_context(listening(self.grace_seconds))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watched.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._over.set()

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self._received is not None:
            raise Interrupted(self._received, self._deadline)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal waits for the next `check`; there is one at the end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside, even within `deferred`, a signal raises at once."""
        self.check()
        before, self._deferred = self._deferred, False
        try:
            yield
        finally:
            self._deferred = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            _exit("a second signal: stopped at once")
        self._received = signal.Signals(number).name
        self._deadline = time.monotonic() + self.grace_seconds
        # in a thread, as the interrupted code may hold a lock that logging needs
        threading.Thread(target=self._watch, name="grace", daemon=True).start()
        if not self._deferred:
            self.check()

    def _watch(self) -> None:
        _log.warning(
            "%s: saving and stopping within %g s (a second signal stops at once)", self._received, self.grace_seconds
        )
        if not self._over.wait(self.grace_seconds):
            _exit(
                f"not done within checkpoint.grace_seconds={self.grace_seconds:g}: the last complete checkpoint is kept"
            )


def _exit(reason: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), _SHOW_CURSOR.encode())
        os.write(2, f"apa-train: {reason}\n".encode())
    os._exit(EXIT_CODE)
