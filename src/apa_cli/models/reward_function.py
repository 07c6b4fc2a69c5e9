"""The user's own reward: a Python function, found by its name and held to its word."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apa_cli.errors import UserError
from apa_cli.models import watched_thread
from apa_cli.models.watched_thread import CallTimeoutError, WatchedThread

if TYPE_CHECKING:
    from apa_cli.models.reward import FinishedResponses

# What Python and its libraries say where only the main thread will do: signal, asyncio, sqlite3.
_MAIN_THREAD = re.compile(r"main thread|event loop in thread|same thread", re.IGNORECASE)
FLOAT32_MAX = torch.finfo(torch.float32).max
_PYTHONS_OWN = (threading.__file__, importlib.__file__)


class RewardFunction:
    """A user's `reward(prompts, responses, **columns) -> list[float]`, its answer checked.

    Of chat prompts, the dialogues come as the column `messages`.
    `timeout`: seconds that it may take, in a thread of its own; None calls it in this one, and waits for ever.
    """

    def __init__(self, function: Callable[..., Any], name: str, *, key: str, timeout: float | None = None) -> None:
        self.function, self.name, self.key, self.timeout = function, name, key, timeout
        self._thread = WatchedThread("reward function")
        parameters = _signature(function, name, key).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters}

    def __call__(self, finished: FinishedResponses) -> list[float]:
        extra = finished.columns if finished.messages is None else {**finished.columns, "messages": finished.messages}
        columns = {
            name: list(values)
            for name, values in extra.items()
            if (self._takes_all or name in self._names) and name not in ("prompts", "responses")
        }
        call = partial(_contained, self.function, list(finished.prompts), list(finished.responses), **columns)
        try:
            scores = call() if self.timeout is None else self._thread.call(call, self.timeout)
        except CallTimeoutError as error:
            problem = f"{self.name} has not returned after {self.timeout:g} s"
            remedy = "mend it (run.log says where it hangs)"
            remedy += f", or raise {self._timeout_key}; null waits for ever"
            raise UserError(self.key, problem, remedy) from _their_frames(error)
        except Exception as error:
            cause = _what_escaped(error)
            raised = _brief(cause)
            problem = f"{self.name} raised {raised}"
            remedy = "mend it: run.log, or APA_TRACEBACK=1, has the traceback"
            if self.timeout is not None and _MAIN_THREAD.search(raised):
                remedy = f"it asks for the main thread: set {self._timeout_key}=null, which calls it there"
            raise UserError(self.key, problem, remedy) from _their_frames(cause)
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            if getattr(stream, "closed", False):
                raise UserError(self.key, f"{self.name} closed sys.{name}", "leave it open: the run prints to it")
        return checked(scores, len(finished.responses), self.name, self.key)

    @property
    def _timeout_key(self) -> str:
        return self.key.removesuffix(".function") + ".timeout_seconds"

    def not_finite(self, row: int, score: float) -> UserError:
        return UserError(self.key, f"{self.name} returned {score} for row {row}", "return finite numbers")


def load_function(name: str, key: str) -> Callable[..., Any]:
    """Import `package.module:name` or `path/to/file.py:name`. Raises UserError."""
    module_name, _, attribute = name.rpartition(":")
    try:
        if module_name.endswith(".py"):
            file = Path(module_name).expanduser()
            if not file.is_file():
                raise UserError(key, f"no file {module_name}", "give path/to/file.py:name")
            spec = importlib.util.spec_from_file_location(f"apa_reward_{file.stem}", file.resolve())
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # so that dataclasses and pickling inside the file work
            _contained(spec.loader.exec_module, module)
        else:
            module = _contained(importlib.import_module, module_name)
    except UserError:
        raise
    except Exception as error:
        cause = _what_escaped(error)
        problem = f"importing {module_name} raised {_brief(cause)}"
        raise UserError(key, problem, "mend the module or its name") from _their_frames(cause)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise UserError(key, f"{module_name} has no function {attribute}", f"it has {', '.join(names) or 'none'}")
    return function


class _EscapeError(Exception):
    """The user's code raised what is no Exception, such as SystemExit; that is the cause."""


def _contained(function: Callable[..., Any], *arguments: Any, **columns: Any) -> Any:
    """The call, in which only a signal's KeyboardInterrupt passes as it is: it comes to the main thread alone."""
    try:
        return function(*arguments, **columns)
    except Exception:
        raise
    except BaseException as error:
        own = type(error).__module__.partition(".")[0] not in ("builtins", __name__.partition(".")[0])
        in_main = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and in_main and not own:
            raise
        raise _EscapeError from error


def _what_escaped(error: Exception) -> BaseException:
    return error.__cause__ if isinstance(error, _EscapeError) and error.__cause__ is not None else error


def _signature(function: Callable[..., Any], name: str, key: str) -> inspect.Signature:
    try:
        signature = inspect.signature(function)
        signature.bind_partial([], [])
    except (TypeError, ValueError):  # no such parameters, or a built-in that does not tell its own
        problem = f"{name} does not take prompts and responses"
        raise UserError(key, problem, "define it as reward(prompts, responses, **columns)") from None
    return signature


def _their_frames(error: BaseException) -> BaseException:
    """The error with a traceback that begins in the user's code."""
    trace = error.__traceback__
    while trace is not None and _ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _ours(file: str) -> bool:
    return file in (__file__, watched_thread.__file__, *_PYTHONS_OWN) or file.startswith("<frozen ")


def _brief(error: BaseException) -> str:
    """Kind and message, cut where a library has put a whole page into it."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    short = message if len(message) <= 300 else f"{message[:300]}…"
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def checked(scores: Any, expected: int, name: str, key: str) -> list[float]:
    """What `name` answered as one float a response, NaN for None: no score. Raises UserError."""
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().tolist()
    elif hasattr(scores, "tolist"):
        scores = scores.tolist()
    if inspect.iscoroutine(scores):
        scores.close()  # which would otherwise be complained of when it is forgotten
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise UserError(key, f"{name} returned {type(scores).__name__}", "return a list with one number a response")
    if len(scores) != expected:
        raise UserError(
            key, f"{name} returned {len(scores)} scores for {expected} responses", "return one number a response"
        )
    checked = []
    for row, score in enumerate(scores):
        if isinstance(score, str):
            raise UserError(key, f"{name} returned {score!r} for row {row}", "return finite numbers")
        try:
            number = math.nan if score is None else float(score)
        except (TypeError, ValueError):
            raise UserError(key, f"{name} returned {score!r} for row {row}", "return finite numbers") from None
        except OverflowError:
            problem = f"{name} returned a whole number beyond every float for row {row}"
            raise UserError(key, problem, "return finite numbers") from None
        checked.append(within_float32(number))
    return checked


def within_float32(number: float) -> float:
    """The number, or what it becomes in a tensor of scores: ±∞ beyond 3.4e38, and then no score."""
    return math.copysign(math.inf, number) if abs(number) > FLOAT32_MAX else number
