"""A configuration names no code: what Hydra would import or call for its own section is refused in YAML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from apa_cli.errors import UserError

# Launchers, sweepers and their samplers, as Hydra and its plugins bring them.
_PLUGINS = ("hydra._internal.", "hydra_plugins.", "optuna.samplers.")
_LOGGING = ("logging.", "colorlog.")
_LOGS = ("hydra.job_logging.", "hydra.hydra_logging.")
_COMMANDS = ("hydra.launcher.setup", "hydra.launcher.python", "hydra.job.env_set")  # run or obeyed by new processes


def refuse_code(hydra: DictConfig, overrides: list[str]) -> None:
    """Raise UserError for the first value in Hydra's section that would run code and was not typed by the user."""
    for key, value in _leaves(OmegaConf.to_container(hydra, resolve=False), "hydra"):
        if _is_code(key, value) and not any(override.lstrip("+~").startswith(key) for override in overrides):
            shown = " ".join(str(value).split())[:80]
            remedy = "take it out of the YAML, which runs no code, or give it on the command line"
            raise UserError(key, f"names code or a command to run ({shown})", remedy)


def _is_code(key: str, value: Any) -> bool:
    name = key.rpartition(".")[2]
    text = str(value)
    if key.startswith("hydra.callbacks."):
        return True
    if key.startswith(_LOGS) and (name in ("()", "class") or "://" in text):
        return not text.startswith((*_LOGGING, "ext://sys.std"))
    if name == "_target_":
        return not text.startswith(_PLUGINS)
    return key.startswith(_COMMANDS) and bool(value)


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, f"{key}.{name}")
    elif isinstance(node, list) and any(isinstance(child, (dict, list)) for child in node):
        for number, child in enumerate(node):
            yield from _leaves(child, f"{key}.{number}")
    else:
        yield key, node
