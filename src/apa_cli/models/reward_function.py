"""The user's own reward: a Python function, found by its name and held to its word."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from apa_cli.errors import UserError

if TYPE_CHECKING:
    from apa_cli.models.reward import FinishedResponses


class RewardFunction:
    """A user's `reward(prompts, responses, **columns) -> list[float]`, its answer checked."""

    def __init__(self, function: Callable[..., Any], name: str, *, key: str) -> None:
        self.function, self.name, self.key = function, name, key
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters}

    def __call__(self, finished: FinishedResponses) -> list[float]:
        columns = {
            name: values
            for name, values in finished.columns.items()
            if (self._takes_all or name in self._names) and name not in ("prompts", "responses")
        }
        try:
            scores = self.function(list(finished.prompts), list(finished.responses), **columns)
        except Exception as error:
            problem = f"{self.name} raised {type(error).__name__}: {error}"
            raise UserError(self.key, problem, "mend it: run.log, or HYDRA_FULL_ERROR=1, has the traceback") from error
        return _checked(scores, len(finished.responses), self.name, self.key)


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
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            key, f"importing {module_name} raised {type(error).__name__}: {error}", "mend the module or its name"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise UserError(key, f"{module_name} has no function {attribute}", f"it has {', '.join(names) or 'none'}")
    return function


def _checked(scores: Any, expected: int, name: str, key: str) -> list[float]:
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().tolist()
    elif hasattr(scores, "tolist"):
        scores = scores.tolist()
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
            number = float(score)
        except (TypeError, ValueError):
            raise UserError(key, f"{name} returned {score!r} for row {row}", "return finite numbers") from None
        if not math.isfinite(number):
            raise UserError(key, f"{name} returned {number} for row {row}", "return finite numbers")
        checked.append(number)
    return checked
