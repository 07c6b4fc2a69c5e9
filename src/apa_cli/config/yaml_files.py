"""YAML as plain values, read and written as meant: no bomb of aliases, no number of YAML 1.1 alone.

OmegaConf's own loader does the parsing. Before it builds anything, the nodes are looked through. Imports no torch.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from apa_cli.config.keys import value_type
from apa_cli.errors import UserError

MOST_VALUES = 10_000  # in a file, each alias counted as what it stands for
_TAG = "tag:yaml.org,2002:"
# 1:30 is 90 to YAML 1.1 (base 60), and 010 is 8.
_ODD_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*(?::\d+)+(?:\.\d*)?|0[\d_]+)")


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """The file as a dictionary; {} where it is empty. `where` names it in errors. Raises UserError."""
    try:
        plain = load_yaml(path, where)
        if not isinstance(plain, dict | None):
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
    return plain or {}


def load_yaml(path: Path, where: str) -> Any:
    """What the file holds; None where it is empty.

    A value that is to be text is the text as written (`policy.revision: 1234e5`), and one that is to be true or false
    is either. `where` names the file in errors.

    Raises UserError, and yaml.YAMLError, OSError, UnicodeDecodeError or RecursionError where there is no YAML in it.
    """
    loader = get_yaml_loader()(path.read_text(encoding="utf-8"))
    try:
        if (root := loader.get_single_node()) is None:
            return None
        _read_as_written(root, "", where, itertools.count(1))
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _read_as_written(node: yaml.Node, key: str, where: str, visits: Iterator[int]) -> None:
    if next(visits) > MOST_VALUES:
        problem = f"holds more than {MOST_VALUES:,} values, its aliases (*) written out"
        raise UserError(where, problem, "keep to the keys of apa-train --help")
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode) and name.tag != f"{_TAG}merge":
                name.tag = f"{_TAG}str"
                _read_as_written(value, f"{key}.{name.value}" if key else name.value, where, visits)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _read_as_written(item, key, where, visits)
    elif node.style is None and node.tag.startswith(_TAG):
        kind = node.tag.removeprefix(_TAG)
        if value_type(key) is str and kind in ("int", "float", "bool"):
            node.tag = f"{_TAG}str"
        elif kind in ("int", "float") and _ODD_NUMBER.fullmatch(node.value):
            problem = f"line {node.start_mark.line + 1}: YAML 1.1 reads {node.value} as another number"
            raise UserError(f"{where}: {key}", problem, f"write it plainly, or '{node.value}' for text")


def escaped(value: Any) -> Any:
    """The same (mappings, sequences, plain values), with every `${` in its text read back as text, and no reference."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value) if isinstance(value, str) else value
