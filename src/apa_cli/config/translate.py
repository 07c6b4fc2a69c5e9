"""What Hydra and OmegaConf raise, said in one line: the key or file, what is wrong, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from apa_cli.config.keys import (
    NAMING_KEY,
    SWEEP,
    all_keys,
    expected,
    find_key,
    groups,
    is_component,
    nearest,
    nearest_key,
    sections,
)
from apa_cli.config.sources import is_path, recipes, shown
from apa_cli.errors import UserError

# Hydra's plugins: the choice of ours that asks for each, and the extra that brings it.
_EXTRAS = {
    "hydra/launcher/joblib": ("joblib", "joblib"),
    "hydra/launcher/submitit_local": ("submitit_local", "submitit"),
    "hydra/launcher/submitit_slurm": ("submitit", "submitit"),
    "hydra/sweeper/optuna": ("optuna", "optuna"),
    "hydra/sweeper/sampler/tpe": ("optuna", "optuna"),
}


def translate(error: BaseException) -> UserError | None:
    """The same as a UserError, or None where the error is not the user's to mend."""
    if isinstance(error, UserError):
        return error
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, UserError):
            return link
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        return _unreadable_override(error)
    file = next((found for link in chain if (found := _file_in(str(link)))), "")
    typed = re.search(r"Could not override '([^']+)'", str(error))
    for link in chain:
        if isinstance(link, OmegaConfBaseException) and (wrong := _of_omegaconf(link, file, typed[1] if typed else "")):
            return wrong
    if isinstance(error, ConfigCompositionException):
        return _composition(str(error), file)
    return UserError(file, _first_line(error))


def unknown_key(key: str, file: str = "") -> UserError:
    return UserError(_at(file, key), "unknown key", nearest_key(key))


def wrong_group(key: str, value: object, file: str = "") -> UserError:
    """A plain value given where keys belong: `policy.adapter=lora`, `objective: ppo`."""
    inside = [name for name in all_keys() if name.startswith(f"{key}.")]
    naming = NAMING_KEY.get(key, inside[0] if inside else key)
    remedy = f"write {naming}=VALUE" if not file else f"write `{naming}: VALUE`"
    return UserError(_at(file, key), f"a group of keys, not a value ({value})", remedy)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error raised from its own consequence makes a circle
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _at(file: str, key: str) -> str:
    return f"{file}: {key}" if file else key


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _file_in(message: str) -> str:
    """The configuration file that Hydra's `In 'config/NAME': ...` speaks of."""
    found = re.match(r"In '([^']+)':", message)
    if not found:
        return ""
    name = found[1].removeprefix("config/")
    return shown(name) if name.startswith("/") else f"{found[1].removesuffix('.yaml')}.yaml"


def _missing_file(error: MissingConfigException) -> UserError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return UserError("--config-name", _first_line(error), "leave it out, or name a file of --config-path")
    file = _file_in(str(error))
    if plugin := _EXTRAS.get(f"{group}/{name}"):
        choice, extra = plugin
        remedy = f"pip install 'apa-cli[{extra}]'"
        return UserError(f"{SWEEP}={choice}", f"needs the extra {extra}, which is not installed", remedy)
    options = list(error.options or (recipes() if group == "config" else ()))
    kind = "no such recipe" if group == "config" else "no such choice"
    remedy = nearest(name, options)
    if group == "config" and Path(f"{name}.yaml").is_file():
        remedy = f"did you mean the file config={name}.yaml?"
    listing = f"choose one of {', '.join(options)}" if options else ""
    where = f"{file}: defaults" if file and not file.startswith("train.yaml") else f"{group}={name}"
    return UserError(where, kind if where.endswith(name) else f"{kind}: {name}", f"{remedy} {listing}".strip())


def _unreadable_override(error: OverrideParseException) -> UserError:
    override = error.override
    if "=" not in override:
        if is_path(override):
            remedy = f"did you mean config={override}?"
        elif override in groups() or override in all_keys():
            remedy = f"did you mean {override}=VALUE?"
        else:
            remedy = "overrides look like objective.kl_lambda=0.1; options come with dashes, such as -m"
        return UserError(override, "not KEY=VALUE", remedy)
    key, _, value = override.partition("=")
    remedy = "put quotes around the value, inside those of the shell: KEY='\"the value\"'"
    return UserError(key, f"cannot read the value {value!r}", remedy)


def _of_omegaconf(error: OmegaConfBaseException, file: str, typed: str) -> UserError | None:
    """`typed` is the key of the override at fault, which may go on where OmegaConf's key ends."""
    key = str(error.full_key or error.key or "")
    key = typed if typed.startswith(f"{key}.") else key
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        if find_key(key) or not key:
            return None
        parent = key.rpartition(".")[0]
        if find_key(parent) and not is_component(key):  # seed.x=1
            return UserError(_at(file, key), f"{parent} is a value and holds no keys", f"write {parent}=VALUE")
        return unknown_key(key, file)
    if isinstance(error, MissingMandatoryValue):
        return UserError(_at(file, key), "not set", f"give it a value, such as {key}=VALUE")
    if isinstance(error, ValidationError):
        return _wrong_type(key, error, file)
    if isinstance(error, InterpolationResolutionError | GrammarParseError):
        remedy = "mend the ${...}, or put it in single quotes with a backslash before $ to mean it literally"
        return UserError(_at(file, key), _first_line(error), remedy)
    return None


def _wrong_type(key: str, error: ValidationError, file: str) -> UserError:
    message = _first_line(error)
    found = re.search(r"Value '(.*?)'(?: of type|\s|$)|value: (.*)$|^'(.*?)' is not|Cannot assign (\w+)", message)
    value = next((part for part in found.groups() if part is not None), "") if found else ""
    if key in sections():
        return wrong_group(key, value or "null", file)
    whole = re.sub(r"\[\d+\]$", "", key)
    if is_component(key):
        shown_value = f" ({value})" if value else ""
        remedy = "write the keys below it, such as path or weight" if file else f"write {key}.KEY=VALUE"
        return UserError(_at(file, key), f"holds keys, and is no value{shown_value}", remedy)
    if find_key(whole) is None:
        return UserError(_at(file, key), message)
    if whole != key:
        return UserError(_at(file, whole), f"holds {value or 'null'!r}, of the wrong type", f"give {expected(whole)}")
    if value == "{}":
        return UserError(_at(file, key), "a value, and holds no keys", f"write {key}=VALUE")
    if "not Optional" in message or "None" in message:
        return UserError(_at(file, key), "cannot be null", f"give {expected(key)}")
    shown_value = f"{value!r} is" if value else "the value is"
    return UserError(_at(file, key), f"{shown_value} not {_wanted(key)}", f"give {expected(key)}")


def _wanted(key: str) -> str:
    found = find_key(key)
    assert found is not None
    names = {int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "names and values"}
    return names.get(found.type, "text")


def _composition(message: str, file: str) -> UserError:
    first = message.strip().splitlines()[0]
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']*?)=(.*)'", first):
        key, value = found[1], found[2]
        remedy = "add -m to run each of them, or quote the value to mean it as one"
        if key in all_keys() and all_keys()[key].type is list:
            remedy = f"write {key}=[{value}]"
        return UserError(key, f"several values ({value})", remedy)
    if found := re.search(r"Could not override '([^']+)'", message):
        name = found[1]
        near = nearest(name, [*groups(), "config", SWEEP]) if "." not in name else nearest_key(name)
        return UserError(_at(file, name), "unknown group" if "." not in name else "unknown key", near)
    if found := re.search(r"An item is already at '([^']+)'", message):
        return UserError(found[1], "exists already", "leave out the + before it")
    if found := re.search(r"Could not delete.*?'([^'=]+)|Error merging override ~([^=\s]+)", message):
        if (name := found[1] or found[2]) not in all_keys():
            return unknown_key(name)
        return UserError(name, "cannot be deleted", "leave out the ~; set it to null where it may be null")
    return UserError(file, re.sub(r"^In '[^']+': ", "", first))
