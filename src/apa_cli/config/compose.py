"""From the command line's overrides to one checked TrainConfig, with Hydra in between. Imports no torch."""

from __future__ import annotations

import os
from functools import cache
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from apa_cli.config import members, sources
from apa_cli.config.checks import check_config
from apa_cli.config.help_text import register as register_help
from apa_cli.config.hydra_code import refuse_code
from apa_cli.config.keys import COMPONENTS, SWEEP, all_keys, find_key, groups, is_component, not_set, sections
from apa_cli.config.overrides import prepared
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import PRIMARY, config_dir
from apa_cli.config.translate import translate, unknown_key
from apa_cli.errors import UserError

VERSION_BASE = "1.3"


@cache
def register() -> None:
    """Make Hydra know the schema, the user's files and the help; calling it again changes nothing."""
    schema = OmegaConf.structured(TrainConfig)
    for key in all_keys().values():
        if key.type is dict:  # names of the user's own choosing
            OmegaConf.set_struct(OmegaConf.select(schema, key.name), False)
    ConfigStore.instance().store(name="train_schema", node=schema, provider="apa-cli")
    sources.register()
    members.register()
    OmegaConf.register_new_resolver("only_for", _only_for, replace=True)
    register_help()


def _only_for(objective: str, value: float, *, _parent_: DictConfig) -> float | None:
    """${only_for:apa,0.1} in a recipe: a knob that was chosen for one objective means nothing to another."""
    return value if _parent_.name == objective else None


def compose_train(overrides: list[str]) -> TrainConfig:
    """What `apa-train OVERRIDES` would run. Raises UserError."""
    return to_train_config(compose_raw(overrides))


def compose_raw(
    overrides: list[str], *, name: str = PRIMARY, folder: str | None = None, extra_folder: str | None = None
) -> DictConfig:
    """Hydra's composition, before it is checked. `folder` and `extra_folder` are --config-path and --config-dir."""
    register()
    overrides = prepared(overrides)
    if extra_folder is not None:
        overrides = [*overrides, f"hydra.searchpath=['file://{os.path.abspath(extra_folder)}']"]
    try:
        with initialize_config_dir(folder or str(config_dir()), job_name=PRIMARY, version_base=VERSION_BASE):
            composed = compose(name, overrides, return_hydra_config=True)
        refuse_code(composed.hydra, overrides)
        with open_dict(composed):
            del composed["hydra"]
        return composed
    except RecursionError as error:
        remedy = "let one of them name a recipe"
        raise UserError("config", "files that extend one another in a circle", remedy) from error
    except ValueError as error:  # what Hydra raises for odd choices of a group and odd defaults lists
        for override in overrides:
            if _chooses_no_name(override):
                remedy = "GROUP=CHOICE takes the name of a choice, which apa-train --help lists"
                raise UserError(override, "not the name of a choice", remedy) from error
        raise UserError("", str(error), "see apa-train --help") from error
    except Exception as error:
        raise_translated(error)


def _chooses_no_name(override: str) -> bool:
    key, _, value = override.partition("=")
    if key == "config" and sources.is_path(value):
        return False
    return key in (*groups(), "config", SWEEP) and (value == "null" or not value[:1].isalpha())


def raise_translated(error: Exception) -> NoReturn:
    """Raise the UserError that this error amounts to, or the error itself."""
    wrong = translate(error)
    if wrong is None or wrong is error:
        raise error
    raise wrong from error


def to_train_config(composed: DictConfig) -> TrainConfig:
    """The composed tree as a dataclass, every interpolation resolved, every rule checked. Raises UserError."""
    _check_names(composed)
    try:
        missing = OmegaConf.missing_keys(composed)
        for key in all_keys():
            if key in missing:
                raise not_set(key)
        config = OmegaConf.to_object(composed)
    except Exception as error:
        raise_translated(error)
    if not isinstance(config, TrainConfig):
        raise UserError("--config-name", "this configuration is not typed", "begin its defaults with train_schema")
    check_config(config)
    config.objective.kl_lambda = config.objective.resolved.get("kl_lambda", config.objective.kl_lambda)
    return config


def _check_names(composed: DictConfig) -> None:
    """+new.key=1 and ~key get past the schema; nothing here reads the one or can do without the other."""
    names = set(_names(composed, ""))
    for name in sorted(names - set(all_keys()) - set(sections())):
        if not is_component(name) and find_key(name) is None:
            raise unknown_key(name)
    for name in all_keys():
        if name not in names:
            raise UserError(name, "cannot be deleted", "leave out the ~; set it to null where it may be null")


def _names(node: DictConfig, prefix: str) -> list[str]:
    found: list[str] = []
    for key in node:
        name = f"{prefix}{key!s}"
        found.append(name)
        if name in all_keys() and name not in COMPONENTS:  # a mapping, whose names are its own
            continue
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not isinstance(child, ListConfig) and not child._is_missing():
            found += [] if child._is_none() or child._is_interpolation() else _names(child, f"{name}.")
    return found
