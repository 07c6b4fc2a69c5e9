"""A reward that is served: texts go out as JSON, scores come back.

POST url   {"prompts": [...], "responses": [...], "query": [...], "token_ids": [...], "ended": [...], "columns": {...}}
200        {"scores": [...]}, or {"rewards": [...]}: one number a response; null and NaN are a missing score
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from apa_cli.config.reward_checks import each_reward
from apa_cli.config.schema import ScorerConfig, TrainConfig
from apa_cli.errors import UserError
from apa_cli.rewards.function import checked
from apa_cli.secrets import excerpt, public_address, read_key

if TYPE_CHECKING:
    from apa_cli.rewards.record import FinishedResponses

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two tries, doubled from one to the next
_PROBE_RETRIES = 3  # at the start somebody is waiting
_LARGEST_ANSWER = 64 << 20  # bytes
_CHUNK = 1 << 16
_ANSWER = 'answer {"scores": [one number a response]}'
_log = logging.getLogger(__name__)


class HttpReward:
    """Asks `url` for batches of scores, a few at a time, and tries again where that may help."""

    def __init__(self, config: ScorerConfig, *, key: str) -> None:
        assert config.url is not None  # check_config has seen to it
        self.config, self.key, self.url = config, key, config.url
        self.host = public_address(config.url)  # as it is written
        self._opener = build_opener(_NoRedirect)  # the environment's proxies hold

    def __call__(self, finished: FinishedResponses) -> list[float]:
        size, count = self.config.batch_size, len(finished.responses)
        rows = [range(start, min(start + size, count)) for start in range(0, count, size)]
        bodies = [(_request(finished, part), len(part)) for part in rows]
        return [score for scores in self._ask_all(bodies, self.config.retries) for score in scores]

    def not_finite(self, row: int, score: float) -> UserError:
        return UserError(
            f"{self.key}.url", f"{self.host} has no score for row {row} ({score})", "answer finite numbers"
        )

    def probe(self) -> None:
        """One response, without columns, to see that there is a server and that it answers with a score.

        Raises UserError.
        """
        body = {
            "prompts": ["Hello"],
            "responses": [" there."],
            "query": ["Hello there."],
            "token_ids": [[]],
            "ended": [True],
        }
        self._ask_all([({**body, "columns": {}}, 1)], min(self.config.retries, _PROBE_RETRIES), quiet=True)

    def _ask_all(
        self, bodies: Sequence[tuple[dict[str, Any], int]], retries: int, *, quiet: bool = False
    ) -> list[list[float]]:
        """Scores of every body, (request, responses in it). Workers are daemons: a signal need not wait for answers."""
        key = self._read_key()
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(bodies)):
            todo.put(number)
        results: queue.SimpleQueue[tuple[int, list[float]] | BaseException | str] = queue.SimpleQueue()
        stop = threading.Event()
        said: list[str] = []

        def say(line: str) -> None:
            """Of several batches that meet the same trouble, the first."""
            if not said:
                said.append(line)
                results.put(line)

        def work() -> None:
            try:
                while not stop.is_set():
                    number = todo.get_nowait()
                    results.put((number, self._ask(*bodies[number], retries, key, stop, say)))
            except (queue.Empty, _StoppedError):
                pass
            except BaseException as error:
                results.put(error)

        answers: dict[int, list[float]] = {}
        try:
            for number in range(min(self.config.concurrency, len(bodies))):
                threading.Thread(target=work, name=f"reward-{number}", daemon=True).start()
            while len(answers) < len(bodies):
                result = results.get()
                if isinstance(result, str):
                    if not quiet:
                        _log.warning(result)
                elif isinstance(result, BaseException):
                    raise result
                else:
                    answers[result[0]] = result[1]
        finally:
            stop.set()
        return [answers[number] for number in range(len(bodies))]

    def _ask(
        self,
        body: dict[str, Any],
        count: int,
        retries: int,
        key: str | None,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> list[float]:
        """Scores of one batch. Raises UserError once trying again is of no use."""
        seconds = self.config.timeout_seconds
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        sent = json.dumps(body).encode("ascii")
        for tried in range(1, retries + 2):
            try:
                return self._read(self._post(sent, key, deadline), count, key)
            except _PassingError as error:
                wait = min(_FIRST_WAIT * 2 ** (tried - 1), _LONGEST_WAIT) if error.wait is None else error.wait
                if tried > retries or time.monotonic() + wait > deadline:
                    raise self._gave_up(error, tried) from None
                if tried == 1:
                    say(f"{self.key}.url: {self.host} {error}; trying again, up to {retries} times")
            except TimeoutError:
                raise self._too_slow() from None
            if stop.wait(wait):
                raise _StoppedError
        raise AssertionError("unreachable")

    def _post(self, sent: bytes, key: str | None, deadline: float) -> bytes:
        """The body of the answer. Raises _PassingError, TimeoutError or UserError."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = Request(self.url, data=sent, headers=headers, method="POST")
        left = None if deadline == math.inf else max(0.001, deadline - time.monotonic())
        try:
            with self._opener.open(request, timeout=left) as response:
                parts, size = [], 0
                while chunk := response.read1(_CHUNK):
                    parts.append(chunk)
                    size += len(chunk)
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    if size > _LARGEST_ANSWER:
                        raise UserError(f"{self.key}.url", f"{self.host} answers with more than 64 MiB", _ANSWER)
                if response.length:  # what it had promised, and not sent
                    raise _PassingError("lost the connection in the middle of an answer")
                return b"".join(parts)
        except HTTPError as error:
            raise self._refused(error, key) from None
        except URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise TimeoutError from None
            raise _PassingError(f"cannot be reached{excerpt(error.reason, key)}") from None
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = type(error).__name__ if not str(error) else str(error)
            raise _PassingError(f"cannot be reached{excerpt(problem, key)}") from None

    def _read(self, answer: bytes, count: int, key: str | None) -> list[float]:
        where = f"{self.key}.url"
        try:
            content = json.loads(answer)
        except (ValueError, RecursionError):
            said = excerpt(answer[:1000].decode("utf-8", "replace"), key) or ": nothing"
            raise UserError(where, f"{self.host} answers with something else than JSON{said}", _ANSWER) from None
        names = [name for name in ("scores", "rewards") if isinstance(content, dict) and name in content]
        if not names:
            said = excerpt(answer[:1000].decode("utf-8", "replace"), key)
            raise UserError(where, f'{self.host} answers JSON without "scores"{said}', _ANSWER)
        return checked(content[names[0]], count, self.host, where)

    def _refused(self, error: HTTPError, key: str | None) -> Exception:
        """The error for a status that is not 2xx."""
        status = error.code
        try:
            said = excerpt(error.read(2000).decode("utf-8", "replace"), key)
        except Exception:
            said = ""
        if status in (408, 429) or status >= 500:
            return _PassingError(f"fails ({status}{said})", wait=_retry_after(error))
        if status in (401, 403):  # the server's message is left out: it may quote the token
            variable = self.config.api_key_env
            problem = f"{self.host} wants a token ({status})" if key is None else f"refuses the token ({status})"
            remedy = (
                f"export {variable} anew" if variable else f"name the variable that holds it: {self.key}.api_key_env"
            )
            return UserError(f"{self.key}.api_key_env", problem, remedy)
        if 300 <= status < 400:
            target = excerpt(error.headers.get("Location", ""), key)
            return UserError(f"{self.key}.url", f"{self.host} is elsewhere ({status}{target})", "give that address")
        problem = f"{self.host} refuses the request ({status}{said})"
        return UserError(f"{self.key}.url", problem, "correct the address, or what the server makes of the request")

    def _gave_up(self, error: _PassingError, tried: int) -> UserError:
        tries = "1 try" if tried == 1 else f"{tried} tries"
        remedy = "start the server, correct the address, or look at the server's log"
        return UserError(f"{self.key}.url", f"{self.host} {error}, in {tries}", remedy)

    def _too_slow(self) -> UserError:
        problem = f"{self.host} has not answered within {self.config.timeout_seconds:g} s"
        remedy = f"see whether the server is stuck, lower {self.key}.batch_size, or raise it"
        return UserError(f"{self.key}.timeout_seconds", problem, remedy)

    def _read_key(self) -> str | None:
        variable, where = self.config.api_key_env, f"{self.key}.api_key_env"
        if variable is None:
            return None
        key = read_key(variable, where)
        if key is None:
            raise UserError(where, f"{variable} is not set", f"export {variable}=TOKEN, or set {where}=null")
        return key


def probe_served(config: TrainConfig) -> None:
    """Ask every reward that is served and needed for one score, before anything is loaded. Raises UserError."""
    for where, part in each_reward(config).items():
        if part.kind == "http":
            HttpReward(part, key=where).probe()


def _request(finished: FinishedResponses, rows: range) -> dict[str, Any]:
    from apa_cli.rewards.record import whole_texts

    texts, ended = whole_texts(finished), list(finished.ended) or [False] * len(finished.responses)
    closed = finished.closed_ids(ended)
    body = {
        "prompts": [finished.prompts[row] for row in rows],
        "responses": [finished.responses[row] for row in rows],
        "query": [texts[row] for row in rows],
        "token_ids": [closed[row] for row in rows],
        "ended": [ended[row] for row in rows],
        "columns": {name: [_plain(values[row]) for row in rows] for name, values in finished.columns.items()},
    }
    if finished.messages is not None:
        body["messages"] = [_plain(finished.messages[row]) for row in rows]
    return body


def _plain(value: Any) -> Any:
    """As JSON knows it; what it does not know becomes text, and numbers that are not finite null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _retry_after(error: HTTPError) -> float | None:
    """Seconds that the server asks for, within reason."""
    try:
        return min(max(0.0, float(error.headers.get("Retry-After", ""))), 2 * _LONGEST_WAIT)
    except ValueError:  # a date, or nothing
        return None


class _PassingError(Exception):
    """Trying again may help, after `wait` seconds where the server says so."""

    def __init__(self, problem: str, *, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class _StoppedError(Exception):
    """Nobody waits for the answer any more."""


class _NoRedirect(HTTPRedirectHandler):
    """A POST that is sent on becomes a GET, and would take the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None
