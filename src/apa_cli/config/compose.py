"""From the command line's words to one checked TrainConfig, with Hydra in between. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

from apa_cli.config import members, sources
from apa_cli.config.checks import check_config
from apa_cli.config.keys import SWEEP, all_keys, nearest, not_set
from apa_cli.config.overrides import prepared
from apa_cli.config.schema import TrainConfig
from apa_cli.config.sources import PRIMARY, config_dir, recipes, shown
from apa_cli.errors import UserError

VERSION_BASE = "1.3"

# The extra that brings a choice of hydra/launcher, hydra/sweeper or hydra/sweeper/sampler.
_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
_EXTRAS |= {"optuna": "optuna", "tpe": "optuna"}
# In Hydra's own section, what runs code or a command. Launchers, sweepers and samplers come from these modules.
_PLUGINS = ("hydra._internal.", "hydra_plugins.", "optuna.samplers.")
_CODE = re.compile(
    r"hydra\.(callbacks\.|(job|hydra)_logging\.(handlers|formatters|filters)\.|launcher\.(setup|python)|job\.env_set)"
)


@cache
def register() -> None:
    """Make Hydra know the schema and the user's files; calling it again changes nothing."""
    schema = OmegaConf.structured(TrainConfig)
    for key in all_keys().values():
        if key.type is dict:  # names of the user's own choosing
            OmegaConf.set_struct(OmegaConf.select(schema, key.name), False)
    ConfigStore.instance().store(name="train_schema", node=schema, provider="apa-cli")
    sources.register()
    members.register()
    OmegaConf.register_new_resolver("only_for", _only_for, replace=True)


def _only_for(objective: str, value: float, *, _parent_: DictConfig) -> float | None:
    """${only_for:apa,0.1} in a recipe: a knob that was chosen for one objective means nothing to another."""
    return value if _parent_.name == objective else None


def compose_train(overrides: list[str]) -> TrainConfig:
    """What `apa-train OVERRIDES` would run. Raises UserError."""
    return to_train_config(compose_raw(overrides))


def compose_raw(overrides: list[str]) -> DictConfig:
    """Hydra's composition, before it is checked. Raises UserError."""
    register()
    overrides = prepared(overrides)
    try:
        with initialize_config_dir(str(config_dir()), job_name=PRIMARY, version_base=VERSION_BASE):
            composed = compose(PRIMARY, overrides, return_hydra_config=True)
        _refuse_code(composed.hydra, overrides)
        if composed.hydra.mode == RunMode.MULTIRUN and not any("hydra.mode=" in word for word in overrides):
            raise UserError("hydra.mode", "set in a file, where it does not start a sweep", "leave it out, and add -m")
        run_dir = composed.hydra.run._get_node("dir")._value()
        with open_dict(composed):
            if run_dir != "${output_dir}":  # hydra.run.dir=DIR
                composed.output_dir = run_dir
            del composed["hydra"]
        return composed
    except Exception as error:
        raise explained(error) from error


def to_train_config(composed: DictConfig) -> TrainConfig:
    """The composed tree as a dataclass, every interpolation resolved, every rule checked. Raises UserError."""
    try:
        missing = OmegaConf.missing_keys(composed)
        for key in all_keys():
            if key in missing:
                raise not_set(key)
        config = OmegaConf.to_object(composed)
    except Exception as error:
        raise explained(error) from error
    assert isinstance(config, TrainConfig)
    check_config(config)
    config.objective.kl_lambda = config.objective.resolved.get("kl_lambda", config.objective.kl_lambda)
    return config


def explained(error: Exception) -> Exception:
    """What Hydra or OmegaConf raises as a UserError, `key: first line of the message`; any other error as it is."""
    if isinstance(error, RecursionError):
        return UserError("config", "files that extend one another in a circle", "let one of them name a recipe")
    chain = list(_chain(error))
    if (found := next((link for link in chain if isinstance(link, UserError)), None)) is not None:
        return found
    if not isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        return error
    file = re.match(r"In '(?:config/)?(/[^']+)': ", str(error))
    where = shown(file[1]) if file else ""
    if isinstance(error, MissingConfigException):
        return _missing_file(error, where)
    cause = next((link for link in chain if isinstance(link, OmegaConfBaseException)), error)
    key = str(getattr(cause, "full_key", None) or "")
    message = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    remedy = "see apa-train --help"
    if isinstance(cause, InterpolationResolutionError | GrammarParseError):
        remedy = "fix the ${...}, or put it in single quotes with a backslash before $ to mean it literally"
    place = ": ".join(part for part in (where, key) if part)
    return UserError(place, re.sub(r"^In '[^']+': ", "", message).strip().rstrip("."), remedy)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error raised from its own consequence makes a circle
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _missing_file(error: MissingConfigException, file: str) -> UserError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if group.startswith("hydra/") and (extra := _EXTRAS.get(name)):
        choice = "submitit" if name == "submitit_slurm" else name
        remedy = f"pip install 'apa-cli[{extra}]'"
        return UserError(f"{SWEEP}={choice}", f"needs the extra {extra}, which is not installed", remedy)
    options = list(error.options or (recipes() if group == "config" else ()))
    kind = "no such recipe" if group == "config" else "no such choice"
    near = nearest(name, options)
    if group == "config" and Path(f"{name}.yaml").is_file():
        near = f"did you mean the file config={name}.yaml?"
    remedy = " ".join(filter(None, [near, f"choose one of {', '.join(options)}" if options else ""]))
    if file:
        return UserError(f"{file}: defaults", f"{kind}: {name}", remedy)
    return UserError(f"{group}={name}", kind, remedy)


def _refuse_code(hydra: DictConfig, overrides: list[str]) -> None:
    """Raise UserError for the first value in Hydra's section that would run code and was not typed by the user."""
    for key, value in _leaves(OmegaConf.to_container(hydra, resolve=False), "hydra"):
        is_code = _CODE.match(key) or (key.endswith("._target_") and not str(value).startswith(_PLUGINS))
        if is_code and value and not any(override.lstrip("+~").startswith(key) for override in overrides):
            text = " ".join(str(value).split())[:80]
            remedy = "remove it from the YAML file, which runs no code, or give it on the command line"
            raise UserError(key, f"names code or a command to run ({text})", remedy)


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every plain value and its dotted key; of lists, the lists' own."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, f"{key}.{name}")
    elif isinstance(node, list) and any(isinstance(child, (dict, list)) for child in node):
        for number, child in enumerate(node):
            yield from _leaves(child, f"{key}.{number}")
    else:
        yield key, node
