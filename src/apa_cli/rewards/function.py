"""reward.kind=function: import and call a user's Python function, and check what it returns."""

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
from types import ModuleType
from typing import Any

import torch

from apa_cli import watched_thread
from apa_cli.config.reward_checks import each_reward
from apa_cli.config.schema import TrainConfig
from apa_cli.data.sources import read_sources
from apa_cli.data.table import Table
from apa_cli.errors import UserError
from apa_cli.rewards.arguments import Arguments
from apa_cli.rewards.record import FinishedResponses
from apa_cli.watched_thread import CallError, CallTimeoutError, WatchedThread

# In errors of code that must run in the main thread: signal, asyncio, sqlite3.
_MAIN_THREAD = re.compile(r"main thread|event loop in thread|same thread", re.IGNORECASE)
FLOAT32_MAX = torch.finfo(torch.float32).max
_FOLDERS: list[str] = []  # of reward files, at the end of sys.path
_NOT_THEIRS = (__file__, watched_thread.__file__, threading.__file__, importlib.__file__, "<frozen ")


class RewardFunction:
    """Calls a user's `reward(prompts, responses, **columns) -> list[float | None]`; see `Arguments` for its parameters.

    timeout: seconds for a call in a separate thread; None calls it in this one, without a limit.
    """

    def __init__(self, function: Callable[..., Any], name: str, *, key: str, timeout: float | None = None) -> None:
        self.function, self.name, self.key, self.timeout = function, name, key, timeout
        self._thread = WatchedThread("reward function")
        self.arguments = Arguments(function, name, key)

    def __call__(self, finished: FinishedResponses) -> list[float]:
        values, keywords = self.arguments.of(finished)
        call = partial(self.function, *values, **keywords)
        timeout_key = self.key.removesuffix(".function") + ".timeout_seconds"
        try:
            scores = call() if self.timeout is None else self._thread.call(call, self.timeout)
        except CallTimeoutError as error:
            problem = f"{self.name} has not returned after {self.timeout:g} s"
            remedy = f"fix it (run.log says where it hangs), or raise {timeout_key}; null waits forever"
            raise UserError(self.key, problem, remedy) from _their_frames(error)
        except KeyboardInterrupt:  # a signal's
            raise
        except BaseException as error:
            cause = error.__cause__ if isinstance(error, CallError) and error.__cause__ is not None else error
            remedy = "fix it: run.log, or APA_TRACEBACK=1, has the traceback"
            if self.timeout is not None and _MAIN_THREAD.search(_brief(cause)):
                remedy = f"it asks for the main thread: set {timeout_key}=null, which calls it there"
            raise UserError(self.key, f"{self.name} raised {_brief(cause)}", remedy) from _their_frames(cause)
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            if getattr(stream, "closed", False):
                raise UserError(self.key, f"{self.name} closed sys.{name}", "leave it open: the run prints to it")
        return checked(scores, len(finished.responses), self.name, self.key)

    def not_finite(self, row: int, score: float) -> UserError:
        return UserError(self.key, f"{self.name} returned {score} for row {row}", "return finite numbers")


def load_function(name: str, key: str, modules: dict[str, ModuleType] | None = None) -> Callable[..., Any]:
    """Import `package.module:name` or `path/to/file.py:name`. Raises UserError.

    modules: files that were run already, whose functions share their state.
    """
    module_name, _, attribute = name.rpartition(":")
    modules = {} if modules is None else modules
    try:
        if module_name.endswith(".py"):
            file = Path(module_name).expanduser()
            if not file.is_file():
                raise UserError(key, f"no file {module_name}", "give path/to/file.py:name")
            place = str(file.resolve())
            if place not in modules:
                modules[place] = _run_file(file.resolve())
            module = modules[place]
        else:
            module = importlib.import_module(module_name)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too
        problem = f"importing {module_name} raised {_brief(error)}"
        raise UserError(key, problem, "fix the module or its name") from _their_frames(error)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise UserError(key, f"{module_name} has no function {attribute}", f"it has {', '.join(names) or 'none'}")
    return function


def _run_file(file: Path) -> ModuleType:
    """The file as a module, which can import what lies beside it.

    Folders of reward files are last in sys.path, the newest first, so that nothing there hides a library. The module
    has the file's name if importing that name leads back to the file; then spawned processes, which inherit sys.path,
    find its functions too.
    """
    folder, beside = str(file.parent), {part.stem for part in file.parent.glob("*.py")}
    for other, module in list(sys.modules.items()):  # of the same name in another reward's folder
        if other.partition(".")[0] in beside and _folder_of(module) in {*_FOLDERS} - {folder}:
            del sys.modules[other]
    rest = [place for place in sys.path if place not in _FOLDERS]
    if folder not in rest:
        _FOLDERS[:] = [folder, *(place for place in _FOLDERS if place != folder)]
    sys.path[:] = [*rest, *_FOLDERS]
    importlib.invalidate_caches()
    name = file.stem
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        found = None
    if found is None or found.origin is None or Path(found.origin).resolve() != file:
        name = f"apa_reward_{name}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _folder_of(module: ModuleType | None) -> str | None:
    file = getattr(module, "__file__", None)
    return None if file is None else str(Path(file).resolve().parent)


def check_functions(config: TrainConfig) -> dict[str, ModuleType]:
    """Import every reward function and check its parameters, before models are loaded. Raises UserError.

    Returns the files that were run. Data is read only if a function takes a column of it.
    """
    modules: dict[str, ModuleType] = {}
    tables: list[Table] = []
    for where, part in each_reward(config).items():
        if part.kind != "function" or part.function is None:
            continue
        key = f"{where}.function"
        arguments = Arguments(load_function(part.function, key, modules), part.function, key)
        tables = tables or (read_sources(config) if arguments.wanted else [])
        for table in tables:
            arguments.check_columns([name for name in table.columns() if name != config.data.prompt_column])
    return modules


def _their_frames(error: BaseException) -> BaseException:
    """The error with a traceback that starts in the user's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_NOT_THEIRS):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _brief(error: BaseException) -> str:
    """Type and message of the error, shortened."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    short = message if len(message) <= 300 else f"{message[:300]}…"
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def checked(scores: Any, expected: int, name: str, key: str) -> list[float]:
    """The scores that `name` returned as floats, NaN for None. Raises UserError unless there is one per response."""
    if isinstance(scores, dict) and "rewards" in scores:  # as OpenRLHF's functions answer
        scores = scores["rewards"]
    if hasattr(scores, "tolist"):  # of an array library
        scores = scores.tolist()
    if inspect.iscoroutine(scores):
        scores.close()  # avoids a warning of Python's
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise UserError(key, f"{name} returned {type(scores).__name__}", "return a list with one number per response")
    if len(scores) != expected:
        problem = f"{name} returned {len(scores)} scores for {expected} responses"
        raise UserError(key, problem, "return one number per response")
    numbers = []
    for row, score in enumerate(scores):
        try:
            if isinstance(score, str):
                raise ValueError
            numbers.append(math.nan if score is None else within_float32(float(score)))
        except (TypeError, ValueError, OverflowError) as error:
            shown = "a whole number beyond every float" if isinstance(error, OverflowError) else repr(score)
            raise UserError(key, f"{name} returned {shown} for row {row}", "return finite numbers") from None
    return numbers


def within_float32(number: float) -> float:
    """The number, ±∞ beyond float32, which is no score."""
    return math.copysign(math.inf, number) if abs(number) > FLOAT32_MAX else number
