"""What each objective says of itself, read from its file in algorithms/ without importing it: torch stays out."""

from __future__ import annotations

import ast
from collections.abc import Mapping
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
    anchor: str  # whose log-probs the policy's are compared with, unless the key objective.anchor says so


@cache
def objectives() -> dict[str, Facts]:
    """By name: every file of algorithms/ that has a KNOB."""
    bases = _classes(_body(ALGORITHMS / "objective.py"))
    found = {}
    for file in sorted(ALGORITHMS.glob("*.py")):
        body = _body(file)
        literals = {name: value for name, value, _ in _assigned(body)}
        if "KNOB" in literals:
            fields = [part for own in _classes(body).values() for part in _fields(own, bases)]
            fixed = {name: value for name, value, is_key in fields if not is_key}
            found[file.stem] = Facts(
                knob=literals["KNOB"][0],
                symbol=literals["KNOB"][1],
                defaults=literals["DEFAULTS"],
                reads=frozenset(name for name, _, is_key in fields if is_key),
                anchor=fixed.get("anchor", "initial"),
            )
    return found


def knob_of(name: str) -> tuple[str, str]:
    """Key and symbol of an objective's KL knob; λ's of one that this version does not know."""
    facts = objectives().get(name)
    return (facts.knob, facts.symbol) if facts is not None else ("kl_lambda", "λ")


def method_of(keys: Mapping[str, Any]) -> str:
    """What the literature calls these settings of `objective` and `advantage` (dotted keys): the choice of that name.

    Scaling and whitening of scores are not looked at. Settings that nobody has named go by their objective's name.
    """
    name, level, anchor = (keys.get(f"objective.{key}") for key in ("name", "level", "anchor"))
    if name == "ppo" and level == "sequence":
        return "rloo"
    if name == "grpo" and keys.get("objective.length_divisor") is not None:
        return "dr_grpo"
    if name == "apa" and level == "sequence":
        named = {"least_squares": "gvpo", "value": "a_star_po", "quantile": "qrpo"}
        return "pmd_mean" if anchor == "rollout" else named.get(str(keys.get("advantage.baseline")), "apa")
    return "dro" if (name, anchor) == ("apa", "rollout") else str(name or "?")


def unread(name: str) -> set[str]:
    """Dotted keys that other objectives read, and this one does not."""
    every = {key for facts in objectives().values() for key in facts.reads}
    reads = objectives()[name].reads if name in objectives() else every
    return {f"objective.{key}" for key in every - reads}


def _body(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


def _classes(body: list[ast.stmt]) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in body if isinstance(node, ast.ClassDef) and node.bases}


def _fields(node: ast.ClassDef, bases: dict[str, ast.ClassDef]) -> list[tuple[str, Any, bool]]:
    """Attributes of a class and of the objectives that it extends."""
    names = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != "Objective"]
    return [part for name in names if name in bases for part in _fields(bases[name], bases)] + _assigned(node.body)


def _assigned(body: list[ast.stmt]) -> list[tuple[str, Any, bool]]:
    """Each assigned name, its value, None where that is no literal, and whether it is a key: annotated, as a field."""
    found: list[tuple[str, Any, bool]] = []
    for node in body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            try:
                value = ast.literal_eval(node.value) if node.value is not None else None
            except ValueError:
                value = None
            if isinstance(target, ast.Name):
                found.append((target.id, value, isinstance(node, ast.AnnAssign)))
    return found
