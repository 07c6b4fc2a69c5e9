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
NAMING_KEY = {
    "policy": "policy.path",
    "reference": "reference.path",
    "reward": "reward.kind",
    "value": "value.kind",
    "data": "data.path",
    "objective": "objective.name",
    "advantage": "advantage.name",
}


# Keys that hold rewards by name; `Key.type` is dict, as of mappings to plain values.
COMPONENTS = ("reward.components", "evaluation.reward.components")

# A group whose files set only what Hydra does with several runs: no key of a run.
SWEEP = "sweep"


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
def sections() -> tuple[str, ...]:
    """Every name that holds keys and is not one: policy, policy.adapter, ..."""
    return tuple(dict.fromkeys(name.rsplit(".", 1)[0] for name in all_keys() if "." in name)) + tuple(
        group for group in groups() if not any(name.rsplit(".", 1)[0] == group for name in all_keys())
    )


def nearest(wrong: str, names: Iterable[str]) -> str:
    """`did you mean X?`, or an empty string where nothing is near."""
    found = get_close_matches(wrong, list(names), n=1)
    return f"did you mean {found[0]}?" if found else ""


def nearest_key(wrong: str) -> str:
    """The key that was probably meant: a key with this last part, one near it, or one near the whole name."""
    names = list(all_keys())
    parent, _, leaf = wrong.rpartition(".")
    if is_component(parent):
        own = get_close_matches(leaf, component_keys(), n=1)
        return f"did you mean {parent}.{own[0]}?" if own else f"a reward has {', '.join(component_keys())}"
    same_leaf = [name for name in names if name.rsplit(".", 1)[-1] == leaf]
    if len(same_leaf) == 1:
        return f"did you mean {same_leaf[0]}?"
    siblings = [name for name in names if name.rpartition(".")[0] == parent]
    return (
        nearest(wrong, siblings)
        or nearest(wrong, [*names, *sections(), "config"])
        or _near_leaf(leaf, names)
        or "apa-train --help lists every key"
    )


def _near_leaf(leaf: str, names: list[str]) -> str:
    leaves = {name.rsplit(".", 1)[-1]: name for name in names}
    found = get_close_matches(leaf, leaves, n=1)
    return f"did you mean {leaves[found[0]]}?" if found else ""


def expected(name: str) -> str:
    """What a value of this key looks like, in words."""
    key = find_key(name)
    assert key is not None
    if name in COMPONENTS:
        return "names with keys below them, such as {NAME:{path:MODEL,weight:0.5}}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list: "a list such as [a,b]",
        dict: "names and values, such as {a: 1}",
    }[key.type]
    if key.choices:
        words = f"one of {', '.join(key.choices)}"
    return f"{words} or null" if key.optional else words
