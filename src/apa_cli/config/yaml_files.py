"""YAML as plain values, read and written as meant: no bomb of aliases, no number of YAML 1.1 alone, no stray reference.

OmegaConf's own loader does the parsing. Before it builds anything, the nodes are looked through. Imports no torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from apa_cli.config.keys import value_type
from apa_cli.errors import UserError

MOST_BYTES = 1 << 20
MOST_VALUES = 10_000  # in a file, each alias counted as what it stands for
_TAG = "tag:yaml.org,2002:"
# 1:30 is 90 to YAML 1.1 (base 60), and 010 is 8.
_ODD_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*(?::\d+)+(?:\.\d*)?|0[\d_]+)")


def load_yaml(path: Path, where: str) -> Any:
    """What the file holds; None where it is empty.

    A value that is to be text is the text as written (`policy.revision: 1234e5`), and one that is to be true or false
    is either. `where` names the file in errors.

    Raises UserError, and yaml.YAMLError, OSError, UnicodeDecodeError or RecursionError where there is no YAML in it.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(where, f"{size:,} bytes, too many for a configuration", "give a text file that holds YAML")
    loader = get_yaml_loader()(path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if (values := _count(root, {})) > MOST_VALUES:
            problem = f"holds {values:,} values, its aliases (*) written out, and {MOST_VALUES:,} are the most"
            raise UserError(where, problem, "keep to the keys of apa-train --help")
        _read_as_written(root, "", where)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below, each alias counted in full. Raises RecursionError for one that holds itself."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = -1
    known[id(node)] = 1 + sum(_count(child, known) for child in _children(node))
    return known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _read_as_written(node: yaml.Node, key: str, where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.tag == f"{_TAG}null":
                problem = f"line {name.start_mark.line + 1}: a key without a name ({name.value or 'empty'})"
                raise UserError(where, problem, "name it, or put its name in quotes")
            if isinstance(name, yaml.ScalarNode) and name.tag != f"{_TAG}merge":
                name.tag = f"{_TAG}str"
                _read_as_written(value, f"{key}.{name.value}" if key else name.value, where)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _read_as_written(item, key, where)
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
