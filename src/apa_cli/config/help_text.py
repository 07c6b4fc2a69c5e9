"""The parts of `apa-train --help` that are read from elsewhere: recipes, groups and keys. Imports no torch."""

from __future__ import annotations

import textwrap
from pathlib import Path
from string import Template
from typing import Any

from omegaconf import OmegaConf

from apa_cli.config.checks import MISSING
from apa_cli.config.keys import all_keys
from apa_cli.config.sources import config_dir, recipes

WIDTH = 100


def register() -> None:
    """Make ${apa_help:recipes}, ${apa_help:groups} and ${apa_help:keys} work in hydra.help.template."""
    parts = {"recipes": recipes_help, "groups": groups_help, "keys": keys_help}
    # Hydra fills its help in with string.Template, to which a dollar sign means something.
    OmegaConf.register_new_resolver("apa_help", lambda part: parts[part]().replace("$", "$$"), replace=True)


def render() -> str:
    """The whole help. Hydra would print the same, but lists every group of its own first, which takes a second."""
    register()
    template = OmegaConf.load(config_dir() / "hydra" / "help" / "train.yaml").template
    return Template(template).substitute()


def recipes_help() -> str:
    """One line for each recipe: the first line of its header comment."""
    files = recipes()
    width = max(map(len, files))
    return "\n".join(f"  {name:<{width}}  {_summary(file)}" for name, file in files.items())


def groups_help() -> str:
    folders = sorted(
        folder for folder in config_dir().iterdir() if folder.is_dir() and folder.name not in ("config", "hydra")
    )
    choices = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    return "\n".join(f"  {group:<11} {', '.join(names)}" for group, names in choices.items() if names)


def keys_help() -> str:
    """Every key with its default and what it means."""
    lines = []
    for key in all_keys().values():
        choices = f" [{'|'.join(key.choices)}]" if key.choices else ""
        text = f"{key.name} ({shown_default(key.default)}) {key.help}{choices}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join(lines)


def shown_default(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "required" if value == MISSING else str(value)


def _summary(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").strip()
    return ""
