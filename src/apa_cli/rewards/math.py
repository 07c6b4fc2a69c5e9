"""A response's final answer against a column with the right one: 1 if they are equal, else 0.

What counts as the answer is for `final_answer` to say, and what is equal for math-verify.
"""

from __future__ import annotations

import logging
import re
from math import nan
from typing import Any

from apa_cli.config.reward_checks import each_reward
from apa_cli.config.schema import ScorerConfig, TrainConfig
from apa_cli.data.sources import read_sources
from apa_cli.data.table import Table, kind_of, listing
from apa_cli.errors import UserError
from apa_cli.rewards.final_answer import RULE, final_answer, right_answer
from apa_cli.rewards.math_verifier import Verifier
from apa_cli.rewards.record import FinishedResponses, Scored

UNREADABLE = "unreadable"  # reward/unreadable: share of the responses without an answer that can be read
_CHECKED = 2_000  # different right answers that are no plain numbers, of which each takes some milliseconds
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)")
_REMEDY = r"give the answer alone, or mark it with \boxed{…} or #### …"
_log = logging.getLogger(__name__)


class MathReward:
    """A response that cannot be read scores 0 and is counted; one whose right answer cannot be read has no score."""

    def __init__(self, config: ScorerConfig, *, key: str) -> None:
        assert config.answer_column is not None  # check_config has seen to it
        self.column, self.key = config.answer_column, key
        self._verifier, self._warned = Verifier(key), False

    def __call__(self, finished: FinishedResponses) -> list[float]:
        return self.score(finished).scores

    def score(self, finished: FinishedResponses) -> Scored:
        """Raises UserError where the data has no such column or math-verify does not start."""
        if self.column not in finished.columns:
            raise _missing(self.key, self.column, "the data", list(finished.columns))
        rights = map(right_answer, finished.columns[self.column])
        answers = map(final_answer, finished.responses)
        equal = [self._equal(right, answer) for right, answer in zip(rights, answers, strict=True)]
        unread = [row for row, one in enumerate(equal) if one is None]
        if unread and not self._warned:
            self._warned = True
            shown = finished.responses[unread[0]][-80:]
            what = "no final answer can be read in %d of %d responses, which score 0; the first ends %r"
            _log.warning(f"%s: {what}; …/%s is their share", self.key, len(unread), len(equal), shown, UNREADABLE)
        parts = {UNREADABLE: [float(one is None) for one in equal]}
        return Scored(scores=[0.0 if one is None else float(one) for one in equal], parts=parts)

    def not_finite(self, row: int, score: float) -> UserError:
        return UserError(f"{self.key}.answer_column", f"the right answer of row {row} cannot be read", _REMEDY)

    def reading(self, columns: dict[str, list[Any]], response: str | None) -> str:
        """What is read of the first row, and by which rule."""
        right = right_answer(columns.get(self.column, [None])[0])
        read = f"of a response {RULE}" if response is None else f"of its response {final_answer(response) or 'nothing'}"
        return f"{right} as the right answer (column {self.column}), and {read}"

    def _equal(self, right: str | None, answer: str | None) -> float | None:
        if right is None:
            return nan
        return None if answer is None else self._verifier.equal(right, answer)


def check_answers(config: TrainConfig) -> None:
    """Read every right answer before models are loaded. Raises UserError."""
    for where, part in each_reward(config).items():
        if part.kind == "math" and part.answer_column is not None:
            for table in read_sources(config):
                _check_column(table, part.answer_column, where, config.data.prompt_column)


def _check_column(table: Table, column: str, where: str, prompt_column: str) -> None:
    columns = [name for name in table.columns() if name != prompt_column]
    if column not in columns:
        raise _missing(where, column, table.source, columns)
    verifier, seen = Verifier(where), set[str]()
    for index, row in enumerate(table.rows):
        right = right_answer(row.get(column))
        if right is not None and (right in seen or _NUMBER.fullmatch(right) or len(seen) >= _CHECKED):
            continue
        if right is None or not verifier.readable(right):
            value = row.get(column)
            text = " ".join(value.split()) if isinstance(value, str) else f"({kind_of(value)})"
            shown = text if len(text) <= 80 else f"…{text[-80:]}"
            problem = f"no right answer can be read from {column}: {shown or '(empty)'}"
            raise UserError(table.places[index], problem, _REMEDY)
        seen.add(right)


def _missing(where: str, column: str, source: str, columns: list[str]) -> UserError:
    key = f"{where}.answer_column"
    return UserError(key, f"{source} has no column {column} ({listing(columns)})", f"name one: {key}=COLUMN")
