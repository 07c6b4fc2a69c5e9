"""Every key of the configuration with its type, default and help, read from the schema. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from apa_cli.config.schema import ComponentConfig, TrainConfig
from apa_cli.errors import UserError

AUTO = "auto"  # of resume: go on with output_dir's run, where there is one

# The key that a group's file names: what `objective: ppo` was probably meant to say.
NAMING_KEY = {group: f"{group}.path" for group in ("policy", "reference", "data")}
NAMING_KEY |= {"reward": "reward.kind", "value": "value.kind", "objective": "objective.name"}
NAMING_KEY["advantage"] = "advantage.name"

# Keys that hold rewards by name; `Key.type` is dict, as of mappings to plain values.
COMPONENTS = ("reward.components", "evaluation.reward.components")

# A group whose files set only what Hydra does with several runs: no key of a run.
SWEEP = "sweep"

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list such as [a,b]",
    dict: "names and values, such as {a: 1}",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    name: str  # dotted
    type: type  # str, int, float, bool, list, dict
    optional: bool
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    item: Any = None  # the type of a list's items


@cache
def all_keys() -> dict[str, Key]:
    """Dotted name to key, in the schema's order."""
    return {key.name: key for key in _walk(TrainConfig, "")}


def _walk(schema: type, prefix: str) -> Iterator[Key]:
    types = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        annotation, optional = types[field.name], False
        if get_origin(annotation) is Union:
            annotation, optional = get_args(annotation)[0], True
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            yield from _walk(annotation, f"{prefix}{field.name}.")
            continue
        factory: Any = field.default_factory
        yield Key(
            name=f"{prefix}{field.name}",
            type=get_origin(annotation) or annotation,
            optional=optional,
            default=field.default if factory is dataclasses.MISSING else factory(),
            help=field.metadata.get("help", ""),
            choices=tuple(field.metadata.get("choices", ())),
            item=get_args(annotation)[0] if get_origin(annotation) is list else None,
        )


@cache
def component_keys() -> dict[str, Key]:
    """Of each reward in a `components` key, by last part."""
    return {key.name: key for key in _walk(ComponentConfig, "")}


def find_key(name: str) -> Key | None:
    """The key of this name, a component's among them: reward.components.NAME.weight."""
    parent, _, leaf = name.rpartition(".")
    if is_component(parent) and leaf in component_keys():
        return dataclasses.replace(component_keys()[leaf], name=name)
    return all_keys().get(name)


def value_type(name: str) -> type | None:
    """The type of a key's value, or of its items; None where there is no such key."""
    key = find_key(name)
    return (key.item or key.type) if key is not None else None


def not_set(key: str) -> UserError:
    """A required key without a value, which a file has that was meant to change the built-in task."""
    remedy = f"give it a value, such as {key}=VALUE, or choose a recipe: config=NAME"
    if key in ("policy.path", "data.path"):
        remedy += "; a YAML file that changes the built-in task begins with `defaults: [reviews_apa]`"
    return UserError(key, "not set", remedy)


def is_component(name: str) -> bool:
    """Whether this is a section under a name of the user's: reward.components.NAME."""
    return name.rpartition(".")[0] in COMPONENTS


@cache
def groups() -> tuple[str, ...]:
    """The top-level groups: policy, reference, ..."""
    return tuple(dict.fromkeys(name.split(".")[0] for name in all_keys() if "." in name))


@cache
def sections() -> frozenset[str]:
    """Every name that holds keys and is not one: policy, policy.adapter, ..."""
    parts = [name.split(".")[:-1] for name in all_keys()]
    return frozenset(".".join(names[:end]) for names in parts for end in range(1, len(names) + 1))


def nearest(wrong: str, names: Iterable[str]) -> str:
    """`did you mean X?`, or an empty string where nothing is near."""
    found = get_close_matches(wrong, list(names), n=1)
    return f"did you mean {found[0]}?" if found else ""


def nearest_key(wrong: str) -> str:
    """The key that was probably meant: a key with this last part, one near the whole name, or near the last part."""
    parent, _, leaf = wrong.rpartition(".")
    if is_component(parent):
        own = get_close_matches(leaf, component_keys(), n=1)
        return f"did you mean {parent}.{own[0]}?" if own else f"a reward has {', '.join(component_keys())}"
    leaves: dict[str, list[str]] = {}
    for name in all_keys():
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    if len(leaves.get(leaf, [])) == 1:
        return f"did you mean {leaves[leaf][0]}?"
    near = [leaves[name][0] for name in get_close_matches(leaf, leaves, n=1)]
    whole = nearest(wrong, [*all_keys(), *sections(), "config"])
    return whole or (f"did you mean {near[0]}?" if near else "apa-train --help lists every key")


def expected(name: str) -> str:
    """What a value of this key looks like, in words."""
    key = find_key(name)
    assert key is not None
    if name in COMPONENTS:
        return "names with keys below them, such as {NAME:{path:MODEL,weight:0.5}}"
    words = f"one of {', '.join(key.choices)}" if key.choices else KINDS[key.type]
    return f"{words} or null" if key.optional else words


def shown_value(value: Any) -> str:
    """A plain value as it is typed."""
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
