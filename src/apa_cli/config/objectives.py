"""What each objective says of itself, read from its file in algorithms/ without importing it: torch stays out."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ALGORITHMS = Path(__file__).parents[1] / "algorithms"


@dataclass(frozen=True, kw_only=True)
class Facts:
    knob: str  # key of the `objective` group: kl_lambda or kl_coef
    symbol: str  # λ or β
    defaults: dict[str, Any]  # of keys that are null
    reads: frozenset[str]  # keys of the `objective` group
    divides_by_rollout: bool  # logged responses, whose sampler is not known, will not do


@cache
def objectives() -> dict[str, Facts]:
    """By name: every file of algorithms/ that has a KNOB."""
    bases = _classes(ast.parse((ALGORITHMS / "objective.py").read_text(encoding="utf-8")))
    found = {}
    for file in sorted(ALGORITHMS.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        literals = {name: value for node in tree.body for name, value in _assigned(node) if name.isupper()}
        if "KNOB" in literals:
            fields = {name: value for own in _classes(tree).values() for name, value in _fields(own, bases)}
            (knob, symbol), divides = literals["KNOB"], bool(fields.pop("divides_by_rollout", False))
            found[file.stem] = Facts(
                knob=knob,
                symbol=symbol,
                defaults=literals["DEFAULTS"],
                reads=frozenset(fields),
                divides_by_rollout=divides,
            )
    return found


def knob_of(name: str) -> tuple[str, str]:
    """Key and symbol of an objective's KL knob; λ's of one that this version does not know."""
    facts = objectives().get(name)
    return (facts.knob, facts.symbol) if facts is not None else ("kl_lambda", "λ")


def unread(name: str) -> set[str]:
    """Dotted keys that other objectives read, and this one does not."""
    every = {key for facts in objectives().values() for key in facts.reads}
    reads = objectives()[name].reads if name in objectives() else every
    return {f"objective.{key}" for key in every - reads}


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases}


def _fields(node: ast.ClassDef, bases: dict[str, ast.ClassDef]) -> list[tuple[str, Any]]:
    """Annotated names of a class and of the objectives that it extends."""
    found: list[tuple[str, Any]] = []
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in bases and base.id != "Objective":
            found += _fields(bases[base.id], bases)
    return found + [pair for part in node.body if isinstance(part, ast.AnnAssign) for pair in _assigned(part)]


def _assigned(node: ast.stmt) -> list[tuple[str, Any]]:
    """(name, literal value) of an assignment; None of a value that is no literal."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    try:
        literal = None if node.value is None else ast.literal_eval(node.value)
    except ValueError:
        literal = None
    return [(target.id, literal) for target in targets if isinstance(target, ast.Name)]
