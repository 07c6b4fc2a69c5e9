"""Bind the parameters of a reward function by name, or by position if no name is known.

Known names are ours, those of TRL's GRPOTrainer (`completions`, `completion_ids`) and those of OpenRLHF's reward
functions (`queries`, `labels`). Any other name is a column of the data.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from inspect import Parameter
from typing import Any

from apa_cli.errors import UserError
from apa_cli.rewards.record import FinishedResponses, whole_texts

SAYS = {  # known names, in words for the log
    "prompts": "prompts",
    "responses": "responses",
    "completions": "responses, as text",
    "queries": "prompt and response in one",
    "completion_ids": "token ids of the responses",
    "raw_prompts": "prompts as the policy reads them",
    "raw_responses": "responses as the policy writes them",
    "labels": "column labels or label",
    "messages": "prompts as messages",
}
RESPONSES = ("responses", "completions", "queries", "completion_ids", "raw_responses")
_LIKE_PROMPTS = re.compile(r"prompt|quer|question|input", re.IGNORECASE)
_LIKE_RESPONSES = re.compile(r"resp|compl|answer|output|generat", re.IGNORECASE)
_PLAIN = "define it as reward(prompts, responses, **columns)"
_BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """How to call `function`. Raises UserError unless it takes prompts and responses."""

    def __init__(self, function: Callable[..., Any], name: str, key: str) -> None:
        self.name, self.key = name, key
        refused = UserError(key, f"{name} does not take prompts and responses", _PLAIN)
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # a built-in without a signature
            raise refused from None
        kinds = {p.kind for p in parameters}
        self.takes_all = Parameter.VAR_KEYWORD in kinds
        self.parameters = [p for p in parameters if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)]
        self.meaning = {p.name: p.name for p in self.parameters}  # parameter to known name or column
        self.by_place: list[str] = []  # parameters with unknown names
        self.loose = 0  # values for *args
        named = any(p.name in RESPONSES for p in self.parameters)
        places = [p for p in self.parameters if p.kind in _BY_PLACE]
        if named or (self.takes_all and not places):
            return
        if len(places) >= 2 and places[0].name in ("prompts", *_unknown(places[0])) and _unknown(places[1]):
            first, second = places[0].name, places[1].name
            if _LIKE_RESPONSES.search(first) or _LIKE_PROMPTS.search(second):
                problem = f"{name} takes {first} and {second}, and neither name says which of them are the responses"
                raise UserError(key, problem, _PLAIN)
            self.by_place = [p.name for p in places[:2] if p.name != "prompts"]
            self.meaning |= {first: "prompts", second: "responses"}
        elif not self.parameters and Parameter.VAR_POSITIONAL in kinds:
            self.loose = 2
        elif not (self.takes_all and [p.name for p in places] == ["prompts"]):
            raise refused

    @property
    def wanted(self) -> list[str]:
        """Columns that the data must have."""
        given = SAYS.keys() - {"labels"}
        return [p.name for p in self.parameters if p.default is p.empty and self.meaning[p.name] not in given]

    def check_columns(self, columns: Collection[str], source: str) -> None:
        """Raise UserError for a missing column, and for a column with the name of a parameter bound by position."""
        for name in self.by_place:
            if name in columns:
                problem = f"{self.name} has no parameter responses, and {name} is also a column of {source}"
                raise UserError(self.key, problem, _PLAIN)
        for name in self.wanted:
            if name not in columns and not (name == "labels" and "label" in columns):
                raise self._missing(name, columns)

    def describe(self) -> str:
        """Describe what the names do not tell; empty if they tell everything."""
        known = [(p.name, self.meaning[p.name]) for p in self.parameters if self.meaning[p.name] in SAYS]
        said = [f"{name} = {SAYS[what]}" for name, what in known if (name, SAYS[what]) != (name, name)]
        how = " (by position: the names say nothing)" if self.by_place or self.loose else ""
        said = ["*args = prompts, responses"] if self.loose else said
        return f"{self.name} is called with {', '.join(said)}{how}" if said else ""

    def of(self, finished: FinishedResponses) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, copied: a function may change its lists."""
        values: list[Any] = [list(finished.prompts), list(finished.responses)][: self.loose]
        keywords: dict[str, Any] = {}
        for parameter in self.parameters:
            found = self._value(self.meaning[parameter.name], finished)
            if found is None:
                if parameter.default is parameter.empty:
                    raise self._missing(parameter.name, finished.columns)
                if parameter.kind is not Parameter.POSITIONAL_ONLY:
                    continue
                found = parameter.default
            if parameter.kind is Parameter.POSITIONAL_ONLY:
                values.append(found)
            else:
                keywords[parameter.name] = found
        if self.takes_all:
            given = {*self.meaning, *self.meaning.values()}
            names = [name for name in ("messages", *finished.columns) if name not in ("prompts", "responses")]
            names += [] if self.loose or "prompts" in given else ["prompts"]
            if "completions" in given:
                names.append("completion_ids")  # as TRL does
            elif not self.loose and not given & set(RESPONSES):
                names.append("responses")
            for name in names:
                value = None if name in self.meaning else self._value(name, finished)
                if value is not None:
                    keywords[name] = value
        return values, keywords

    def _value(self, what: str, finished: FinishedResponses) -> list[Any] | None:
        """The list for a known name or a column, or None."""
        if what == "prompts":
            return list(finished.prompts)
        if what == "responses" or (what == "completions" and "responses" not in self.meaning.values()):
            return list(finished.responses)
        if what == "messages" and finished.messages is not None:
            return list(finished.messages)
        if what in finished.columns:
            return list(finished.columns[what])
        if what == "labels" and "label" in finished.columns:
            return list(finished.columns["label"])
        if what == "queries":
            return whole_texts(finished)
        if what == "completion_ids":
            return [list(ids) for ids in finished.response_ids]
        if what in ("raw_prompts", "raw_responses"):
            return finished.raw()[what == "raw_responses"]
        return None

    def _missing(self, name: str, columns: Collection[str]) -> UserError:
        there = ", ".join(sorted(columns)[:8]) or "none"
        problem = f"{self.name} needs {name}, which is neither known nor a column of the data (it has {there})"
        remedy = "name a column, give the parameter a default, or take prompts and responses under these names"
        return UserError(self.key, problem, remedy)


def _unknown(parameter: Parameter) -> tuple[str, ...]:
    return () if parameter.name in SAYS else (parameter.name,)
