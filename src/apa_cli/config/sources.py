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

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from apa_cli.config.keys import SWEEP, all_keys, groups, nearest, not_set
from apa_cli.config.values import check_value
from apa_cli.config.yaml_files import load_yaml
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


def refuse_variables(output_dir: str) -> None:
    """Raise UserError for a folder called $HOME that is not there: a shell would have expanded it, YAML does not."""
    folder = Path(output_dir)
    for place in (folder, *folder.parents):
        if (found := re.search(r"\$\{?(\w+)", place.name)) and not os.path.lexists(place):
            remedy = f"write ${{oc.env:{found[1]}}}, or the folder itself"
            raise UserError("output_dir", f"{found[0]} in {output_dir} was not expanded by a shell", remedy)


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
        content = read_yaml(path)
        if isinstance(content.get("output_dir"), str):
            content["output_dir"] = os.path.expanduser(content["output_dir"])
        defaults = content.pop("defaults", None)
        body = spread(content, shown(path))
        for key, value in body.items():
            if key != "hydra":
                check_value(key, value, shown(path))
        body = _unset(body)
        body["defaults"] = complete_defaults(defaults, path)
        return ConfigResult(
            provider=self.provider,
            path=f"{self.scheme()}://{path}",
            config=OmegaConf.create(body),
            header={"package": "_global_"},
        )


class UserFileSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="apa-cli", path=f"{UserFileSource.scheme()}://")


def register() -> None:
    """Tell Hydra of both, once."""
    OmegaConf.register_new_resolver(_NOT_SET, _refuse_reading, replace=True)
    for plugin in (UserFileSource, UserFileSearchPath):
        Plugins.instance().register(plugin)


def read_yaml(path: str) -> dict[str, Any]:
    """The file as a dictionary; {} where it is empty."""
    where = shown(path)
    if not Path(path).is_file():
        problem = "is a folder, not a file" if Path(path).is_dir() else "no such file"
        remedy = "name a .yaml file, or one of the recipes that apa-train --help lists"
        if not path.endswith(ENDINGS) and Path(f"{path}.yaml").is_file():
            remedy = f"did you mean config={where}.yaml?"
        raise UserError(f"config={where}", problem, remedy)
    try:
        plain = load_yaml(Path(path), where)
        if plain is None:
            return {}
        if not isinstance(plain, dict):
            raise UserError(where, "not a mapping of keys to values", "write lines such as `seed: 1`")
        OmegaConf.create(plain)  # checks the ${...} in it
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(where, f"{line}not YAML: {error.problem or error}", "fix that line") from error
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{where}: {error.full_key or error.key}", problem, "fix the ${...}") from error
    except RecursionError as error:
        raise UserError(where, "refers to itself, or is nested too deeply", "write it out without & and *") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(where, f"cannot be read: {reason}", "give a text file that holds YAML") from error
    return plain


def spread(content: dict[str, Any], where: str, parent: str = "") -> dict[str, Any]:
    """`objective.kl_lambda: 0.1` means the same as the nested form; both at once must not disagree."""
    body: dict[str, Any] = {}
    for key, value in content.items():
        *parents, leaf = str(key).split(".")
        if not all((*parents, leaf)):
            raise UserError(f"{where}: {parent}{key!r}", "an empty part in a key", "write lines such as `seed: 1`")
        node = body
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"{where}: {parent}{key}", f"{part} is already a plain value", "write one of the two")
        new = spread(value, where, f"{parent}{key}.") if isinstance(value, dict) else value
        _put(node, leaf, new, f"{where}: {parent}{key}")
    return body


def _unset(body: dict[str, Any], parent: str = "") -> dict[str, Any]:
    """`policy.path: ???` takes the value of what the file extends away: to Hydra it would say nothing."""
    return {
        key: _unset(value, f"{parent}{key}.")
        if isinstance(value, dict)
        else f"${{{_NOT_SET}:{parent}{key}}}"
        if value == "???" and f"{parent}{key}" in all_keys()
        else value
        for key, value in body.items()
    }


def _refuse_reading(key: str) -> None:
    raise not_set(key)


def _put(node: dict[str, Any], leaf: str, new: Any, where: str) -> None:
    if leaf not in node:
        node[leaf] = new
    elif isinstance(new, dict) and isinstance(node[leaf], dict):
        for key, value in new.items():
            _put(node[leaf], key, value, where)
    else:
        raise UserError(where, "set twice", "keep one of the two")


def complete_defaults(defaults: Any, path: str) -> list[Any]:
    """A full Hydra defaults list: what the file extends, the file itself, then its group choices."""
    where = shown(path)
    if defaults is None:
        defaults = []
    if not isinstance(defaults, list):
        raise UserError(f"{where}: defaults", "not a list", "write a list, such as `defaults: [reviews_apa]`")
    bases = [_base(entry, path) for entry in defaults if isinstance(entry, str)]
    if all(base == "_self_" for base in bases):
        bases.insert(0, f"/{_GROUP}{BASE}")
    if "_self_" not in bases:
        bases.append("_self_")
    choices = [choice for entry in defaults if not isinstance(entry, str) for choice in _choices(entry, where)]
    return [*bases, *choices]


def _base(entry: str, path: str) -> str:
    if entry == "_self_":
        return entry
    name = entry.removeprefix("/").removeprefix(_GROUP) if entry.startswith(f"/{_GROUP}") else entry
    if is_path(name):
        name = absolute_path(name, os.path.dirname(path))
        if name == path:
            raise UserError(f"{shown(path)}: defaults", "the file extends itself", "name another recipe or file")
    return f"/{_GROUP}{name}"


def _choices(entry: Any, where: str) -> Iterator[dict[str, Any]]:
    """`objective: ppo`, `/objective: ppo` and `override /objective: ppo` all choose a group's file."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: defaults", f"{entry!r} is not a recipe or a choice", "write `- objective: ppo`")
    for key, name in entry.items():
        if isinstance(name, list):
            raise UserError(f"{where}: defaults", f"{key}: one choice, not a list ({name})", f"write `- {key}: CHOICE`")
        group = str(key).removeprefix("override ").strip().removeprefix("/")
        known = (*groups(), SWEEP)
        if group not in known and not group.startswith("hydra/"):
            near = nearest(group, known)
            raise UserError(f"{where}: defaults", f"no group {group!r}", near or f"groups: {', '.join(known)}")
        yield {f"override /{group}": name}
