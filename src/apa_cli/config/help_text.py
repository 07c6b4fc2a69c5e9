"""`apa-train --help`: the template in configs/hydra/help/, with recipes, groups and keys filled in. No torch."""

from __future__ import annotations

import textwrap
from pathlib import Path
from string import Template

from omegaconf import OmegaConf

from apa_cli.config.checks import MISSING
from apa_cli.config.keys import all_keys, shown_value
from apa_cli.config.sources import config_dir, recipes

WIDTH = 100


def render() -> str:
    """The whole help. Hydra would list every group of its own first, which takes a second."""
    template = OmegaConf.load(config_dir() / "hydra" / "help" / "train.yaml").template
    return Template(template).substitute(recipes=_recipes_help(), groups=_groups_help(), keys=_keys_help())


def _recipes_help() -> str:
    """One line for each recipe: the first line of its header comment."""
    files = recipes()
    width = max(map(len, files))
    return "\n".join(f"  {name:<{width}}  {_summary(file)}" for name, file in files.items())


def _groups_help() -> str:
    choices: dict[str, list[str]] = {}
    for file in sorted(config_dir().glob("*/*.yaml")):
        choices.setdefault(file.parent.name, []).append(file.stem)
    return "\n".join(f"  {group:<11} {', '.join(names)}" for group, names in choices.items() if group != "config")


def _keys_help() -> str:
    """Every key with its default and what it means."""
    lines = []
    for key in all_keys().values():
        choices = f" [{'|'.join(key.choices)}]" if key.choices else ""
        default = "required" if key.default == MISSING else shown_value(key.default)
        text = f"{key.name} ({default}) {key.help}{choices}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join(lines)


def _summary(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(line.lstrip("# ").strip() for line in lines if line.startswith("#") and not line.startswith("# @"))
