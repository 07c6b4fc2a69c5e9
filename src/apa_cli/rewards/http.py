"""reward.kind=http: send texts as JSON and receive scores.

POST url   {"prompts": [...], "responses": [...], "query": [...], "token_ids": [...], "ended": [...], "columns": {...}}
200        {"scores": [...]}, or {"rewards": [...]}: one number per response; null or NaN for a missing score
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
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

    def __init__(self, config: ScorerConfig, *, key: str, warn: Callable[[str], None] | None = _log.warning) -> None:
        assert config.url is not None  # check_config has seen to it
        self.config, self.key, self.warn = config, key, warn
        self.server = JsonServer(
            url=config.url,
            key=key,
            token_variable=config.api_key_env,
            retries=config.retries,
            timeout_seconds=config.timeout_seconds,
            expected='answer {"scores": [one number per response]}',
        )

    def __call__(self, finished: FinishedResponses) -> list[float]:
        variable, where, server = self.config.api_key_env, f"{self.key}.api_key_env", self.server
        token = None if variable is None else read_key(variable, where)
        if variable is not None and token is None:
            raise UserError(where, f"{variable} is not set", f"export {variable}=TOKEN, or set {where}=null")

        def ask(body: dict[str, Any], stop: threading.Event) -> list[float]:
            answer = server.ask(body, token, stop, self.warn)
            for name in ("scores", "rewards"):
                if isinstance(answer, dict) and name in answer:
                    return checked(answer[name], len(body["responses"]), server.host, f"{self.key}.url")
            problem = f'{server.host} answers JSON without "scores"{excerpt(json.dumps(answer), token)}'
            raise server.error("url", problem, server.expected)

        found = dict(ask_all(_requests(finished, self.config.batch_size), ask, self.config.concurrency))
        return [score for number in sorted(found) for score in found[number]]

    def not_finite(self, row: int, score: float) -> UserError:
        problem = f"{self.server.host} has no score for row {row} ({score})"
        return UserError(f"{self.key}.url", problem, "answer finite numbers")


def probe_served(config: TrainConfig) -> None:
    """Request a score from every reward server that the run needs, before anything is loaded. Raises UserError."""
    hello = FinishedResponses(
        prompts=["Hello"], responses=[" there."], messages=None, columns={}, token_ids=[[]], ended=[True]
    )
    for where, part in each_reward(config).items():
        if part.kind == "http":
            HttpReward(replace(part, retries=min(part.retries, _PROBE_RETRIES)), key=where, warn=None)(hello)


def _requests(finished: FinishedResponses, size: int) -> list[dict[str, Any]]:
    """One request for every `size` responses."""
    ended = list(finished.ended) or [False] * len(finished.responses)
    fields: dict[str, Any] = {
        "prompts": finished.prompts,
        "responses": finished.responses,
        "query": whole_texts(finished),
        "token_ids": finished.closed_ids(ended),
        "ended": ended,
    }
    if finished.messages is not None:
        fields["messages"] = json_value(finished.messages)
    columns = json_value(finished.columns)

    def part(of: dict[str, Any], start: int) -> dict[str, Any]:
        return {name: values[start : start + size] for name, values in of.items()}

    return [{**part(fields, n), "columns": part(columns, n)} for n in range(0, len(finished.responses), size)]
