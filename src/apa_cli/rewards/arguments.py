"""Bind the parameters of a reward function by name.

Known names are ours, those of TRL's GRPOTrainer (`completions`, `completion_ids`) and those of OpenRLHF's reward
functions (`queries`, `labels`). Any other name is a column of the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from inspect import Parameter
from typing import Any

from apa_cli.errors import UserError
from apa_cli.rewards.record import FinishedResponses, whole_texts

Known = Callable[[FinishedResponses], Any]
KNOWN: dict[str, Known] = {
    "prompts": lambda finished: finished.prompts,
    "responses": lambda finished: finished.responses,
    "messages": lambda finished: finished.messages,
    "completions": lambda finished: finished.responses,
    "completion_ids": lambda finished: [list(ids) for ids in finished.response_ids],
    "queries": whole_texts,
    "labels": lambda finished: finished.columns.get("label"),
    "raw_prompts": lambda finished: finished.raw()[0],
    "raw_responses": lambda finished: finished.raw()[1],
}
RESPONSES = {"responses", "completions", "queries", "completion_ids", "raw_responses"}
_REMEDY = "name a column, give the parameter a default, or take prompts and responses under these names"


class Arguments:
    """How to call `function`. Raises UserError unless it takes prompts and responses."""

    def __init__(self, function: Callable[..., Any], name: str, key: str) -> None:
        self.name, self.key = name, key
        refused = UserError(
            key, f"{name} does not take prompts and responses", "define it as reward(prompts, responses, **columns)"
        )
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # a built-in without a signature
            raise refused from None
        self.takes_all = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        self.parameters = [p for p in parameters if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)]
        self.names = {p.name for p in self.parameters}
        if not self.names & RESPONSES:
            places = {p.name for p in self.parameters if p.kind is not Parameter.KEYWORD_ONLY}
            if not self.takes_all or places - {"prompts"}:
                raise refused

    @property
    def wanted(self) -> list[str]:
        """Columns that the data must have."""
        given = KNOWN.keys() - {"labels"}
        return [p.name for p in self.parameters if p.default is p.empty and p.name not in given]

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise UserError for a missing column."""
        for name in self.wanted:
            if name not in columns and not (name == "labels" and "label" in columns):
                raise self._missing(name, columns)

    def of(self, finished: FinishedResponses) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, copied: a function may change its lists."""
        values: list[Any] = []
        keywords: dict[str, Any] = {}
        for parameter in self.parameters:
            value = self._value(parameter.name, finished)
            if value is None and parameter.default is parameter.empty:
                raise self._missing(parameter.name, finished.columns)
            if parameter.kind is Parameter.POSITIONAL_ONLY:
                values.append(parameter.default if value is None else value)
            elif value is not None:
                keywords[parameter.name] = value
        if self.takes_all:
            names = [name for name in ("messages", *finished.columns, "prompts") if name != "responses"]
            if "completions" in self.names:
                names.append("completion_ids")  # as TRL does
            elif not self.names & RESPONSES:
                names.append("responses")
            for name in names:
                if name not in self.names and (value := self._value(name, finished)) is not None:
                    keywords[name] = value
        return values, keywords

    def _value(self, name: str, finished: FinishedResponses) -> list[Any] | None:
        """The list for a known name or a column, or None."""
        ours = {"prompts", "responses"} if finished.messages is None else {"prompts", "responses", "messages"}
        if "responses" not in self.names:
            ours.add("completions")
        if name in finished.columns and name not in ours:
            return list(finished.columns[name])
        value = KNOWN[name](finished) if name in KNOWN else None
        return None if value is None else list(value)

    def _missing(self, name: str, columns: Collection[str]) -> UserError:
        there = ", ".join(sorted(columns)[:8]) or "none"
        problem = f"{self.name} needs {name}, which is neither known nor a column of the data (it has {there})"
        return UserError(self.key, problem, _REMEDY)
