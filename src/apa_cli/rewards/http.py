"""reward.kind=http: send texts as JSON and receive scores.

POST url   {"prompts": [...], "responses": [...], "query": [...], "token_ids": [...], "ended": [...], "columns": {...}}
200        {"scores": [...]}, or {"rewards": [...]}: one number per response; null or NaN for a missing score
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from apa_cli.config.reward_checks import each_reward
from apa_cli.config.schema import ScorerConfig, TrainConfig
from apa_cli.errors import UserError
from apa_cli.files import json_value
from apa_cli.rewards.function import checked
from apa_cli.rewards.json_server import JsonServer, ask_all
from apa_cli.rewards.record import FinishedResponses, whole_texts
from apa_cli.secrets import excerpt, read_key

_PROBE_RETRIES = 3  # as a user waits for the start
_log = logging.getLogger(__name__)


class HttpReward:
    """Requests batches of scores from `url`, several at a time. Raises UserError if there is no usable answer."""

    def __init__(self, config: ScorerConfig, *, key: str) -> None:
        assert config.url is not None  # check_config has seen to it
        self.config, self.key = config, key
        self.server = JsonServer(
            url=config.url,
            key=key,
            token_variable=config.api_key_env,
            retries=config.retries,
            timeout_seconds=config.timeout_seconds,
            expected='answer {"scores": [one number per response]}',
        )

    def __call__(self, finished: FinishedResponses) -> list[float]:
        return self._scores(self.server, _requests(finished, self.config.batch_size), _log.warning)

    def not_finite(self, row: int, score: float) -> UserError:
        problem = f"{self.server.host} has no score for row {row} ({score})"
        return UserError(f"{self.key}.url", problem, "answer finite numbers")

    def probe(self) -> None:
        """Request the score of one response, without columns, to check the server."""
        hello = FinishedResponses(
            prompts=["Hello"], responses=[" there."], messages=None, columns={}, token_ids=[[]], ended=[True]
        )
        server = replace(self.server, retries=min(self.server.retries, _PROBE_RETRIES))
        self._scores(server, _requests(hello, 1))

    def _scores(
        self, server: JsonServer, bodies: Sequence[dict[str, Any]], warn: Callable[[str], None] | None = None
    ) -> list[float]:
        token, warnings = self._token(), count()

        def ask(body: dict[str, Any], stop: threading.Event) -> list[float]:
            answer = server.ask(body, token, stop, warn_once)
            names = [name for name in ("scores", "rewards") if isinstance(answer, dict) and name in answer]
            if not names:
                problem = f'{server.host} answers JSON without "scores"{excerpt(json.dumps(answer), token)}'
                raise server.error("url", problem, server.expected)
            return checked(answer[names[0]], len(body["responses"]), server.host, f"{self.key}.url")

        def warn_once(line: str) -> None:
            """Report only the first of several failing batches."""
            if warn is not None and next(warnings) == 0:
                warn(line)

        found = dict(ask_all(bodies, ask, self.config.concurrency))
        return [score for number in range(len(bodies)) for score in found[number]]

    def _token(self) -> str | None:
        variable, where = self.config.api_key_env, f"{self.key}.api_key_env"
        token = None if variable is None else read_key(variable, where)
        if variable is not None and token is None:
            raise UserError(where, f"{variable} is not set", f"export {variable}=TOKEN, or set {where}=null")
        return token


def probe_served(config: TrainConfig) -> None:
    """Check every reward server that the run needs, before anything is loaded. Raises UserError."""
    for where, part in each_reward(config).items():
        if part.kind == "http":
            HttpReward(part, key=where).probe()


def _requests(finished: FinishedResponses, size: int) -> list[dict[str, Any]]:
    """One request for every `size` responses."""
    ended = list(finished.ended) or [False] * len(finished.responses)
    fields: dict[str, Sequence[Any]] = {
        "prompts": finished.prompts,
        "responses": finished.responses,
        "query": whole_texts(finished),
        "token_ids": finished.closed_ids(ended),
        "ended": ended,
    }
    if finished.messages is not None:
        fields["messages"] = json_value(finished.messages)
    columns: dict[str, Sequence[Any]] = json_value(finished.columns)

    def part(of: dict[str, Sequence[Any]], start: int) -> dict[str, Any]:
        return {name: values[start : start + size] for name, values in of.items()}

    return [{**part(fields, n), "columns": part(columns, n)} for n in range(0, len(finished.responses), size)]
