"""Align a language model to a reward on one device: APA, PPO and AWR, with one command and one YAML file.

From Python: `from apa_cli import UserError, evaluate, train`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {"train": "apa_cli.commands.train", "evaluate": "apa_cli.commands.eval", "UserError": "apa_cli.errors"}


def __getattr__(name: str) -> Any:
    """Imported when asked for, so that importing a module of ours imports nothing else."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
