"""How `config=path/to/mine.yaml` reaches Hydra: the user's file system as one more place where recipes are found.

Hydra asks each place on its search path for `config/NAME`. `UserFileSource` answers where NAME is the path of a YAML
file. It serves the file as a recipe: its keys stand at the root of the configuration, dotted keys are spread out,
and a `defaults` list is completed, so that a file may hold only what differs. The schema types it like any recipe.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from apa_cli.config.keys import SWEEP, all_keys, groups, nearest, not_set
from apa_cli.config.values import check_value
from apa_cli.config.yaml_files import read_yaml
from apa_cli.errors import UserError

PRIMARY = "train"  # configs/train.yaml
BASE = "own"  # the recipe that a file extends unless it says otherwise
ENDINGS = (".yaml", ".yml")
_GROUP = "config/"
_NOT_SET = "apa_not_set"  # ${apa_not_set:KEY} raises what ??? means
_PLAIN = re.compile(r"[\w/.+-]+")  # what Hydra's grammar takes without quotes


def config_dir() -> Path:
    """The YAML files: inside the package when installed, beside src/ in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "configs", package.parent.parent / "configs"):
        if (folder / f"{PRIMARY}.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no {PRIMARY}.yaml in {package / 'configs'}: the installation is incomplete")


def recipes() -> dict[str, Path]:
    """The recipes that come with the command, by name."""
    return {file.stem: file for file in sorted((config_dir() / "config").glob("*.yaml"))}


def is_path(name: str) -> bool:
    """Whether `config=name` means a file of the user's and not a recipe."""
    return name.endswith(ENDINGS) or "/" in name or name.startswith("~")


def absolute_path(path: str, folder: str = "") -> str:
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def quoted(path: str) -> str:
    return path if _PLAIN.fullmatch(path) else "'" + path.replace("'", "\\'") + "'"


def shown(path: str) -> str:
    """A file as the user would write it: relative where that is shorter."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


class UserFileSource(ConfigSource):
    """Serves `config/<path of a YAML file>`."""

    @staticmethod
    def scheme() -> str:
        return "user"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        # A file that is not there is claimed too: load_config says so better than Hydra could.
        return config_path.startswith(_GROUP) and is_path(config_path.removeprefix(_GROUP))

    def list(self, config_path: str, results_filter: Optional[ObjectType]) -> list[str]:
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        path = absolute_path(config_path.removeprefix(_GROUP))
        where = shown(path)
        if not Path(path).is_file():
            remedy = "name a .yaml file, or one of the recipes that apa-train --help lists"
            if Path(f"{path}.yaml").is_file():
                remedy = f"did you mean config={where}.yaml?"
            raise UserError(f"config={where}", "no such file", remedy)
        content = read_yaml(Path(path), where)
        defaults = _complete_defaults(content.pop("defaults", None), path)
        body = _spread(content, where)
        for key, value in body.items():
            if key != "hydra":
                check_value(key, value, where)
        if isinstance(body.get("output_dir"), str):
            body["output_dir"] = os.path.expanduser(body["output_dir"])
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{path}",
            config=OmegaConf.create(body | {"defaults": defaults}),
            header={"package": "_global_"},
        )


class UserFileSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="apa-cli", path=f"{UserFileSource.scheme()}://")


def register() -> None:
    """Tell Hydra of both, once."""

    def refuse_reading(key: str) -> None:
        raise not_set(key)

    OmegaConf.register_new_resolver(_NOT_SET, refuse_reading, replace=True)
    for plugin in (UserFileSource, UserFileSearchPath):
        Plugins.instance().register(plugin)


def _spread(content: dict[str, Any], where: str) -> dict[str, Any]:
    """`objective.kl_lambda: 0.1` means the same as the nested form; a key may not have a value in both.

    `policy.path: ???` takes the value of what the file extends away.
    """
    body: dict[str, Any] = {}
    for name, value in _leaves(content):
        *parents, leaf = name.split(".")
        node: Any = body
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or node.get(leaf, {}) != {}:
            raise UserError(f"{where}: {name}", "set twice", "keep one of the two")
        if value == "???" and name in all_keys():  # to Hydra it would say nothing of what the file extends
            value = f"${{{_NOT_SET}:{name}}}"
        node[leaf] = value
    return body


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _complete_defaults(defaults: Any, path: str) -> list[Any]:
    """A full Hydra defaults list: what the file extends, the file itself, then its group choices."""
    where, known = f"{shown(path)}: defaults", (*groups(), SWEEP)
    if not isinstance(defaults or [], list):
        raise UserError(where, "not a list", "write a list, such as `defaults: [reviews_apa]`")
    bases, choices = [], []
    for entry in defaults or []:
        if isinstance(entry, str):
            bases.append(_base(entry, path))
            continue
        # `objective: ppo`, `/objective: ppo` and `override /objective: ppo` all choose a group's file.
        for key, name in entry.items() if isinstance(entry, dict) else [("", entry)]:
            group = str(key).removeprefix("override ").strip().removeprefix("/")
            if not group or not isinstance(name, str):
                raise UserError(where, f"{entry!r} is not a recipe or one choice", "write `- objective: ppo`")
            if group not in known and not group.startswith("hydra/"):
                near = nearest(group, known)
                raise UserError(where, f"no group {group!r}", near or f"groups: {', '.join(known)}")
            choices.append({f"override /{group}": name})
    if all(base == "_self_" for base in bases):
        bases.insert(0, f"/{_GROUP}{BASE}")
    return [*bases, *([] if "_self_" in bases else ["_self_"]), *choices]


def _base(entry: str, path: str) -> str:
    if entry == "_self_":
        return entry
    name = entry.removeprefix(f"/{_GROUP}")
    if is_path(name):
        name = absolute_path(name, os.path.dirname(path))
        if name == path:
            raise UserError(f"{shown(path)}: defaults", "the file extends itself", "name another recipe or file")
    return f"/{_GROUP}{name}"
