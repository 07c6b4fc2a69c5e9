"""Send JSON requests to a server, with retries and one-line errors."""

from __future__ import annotations

import http.client
import itertools
import json
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.request import HTTPErrorProcessor, Request, build_opener

from apa_cli.errors import UserError
from apa_cli.secrets import excerpt, public_address

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two tries; each wait is twice the one before
_CHUNK = 1 << 16  # bytes
Job = TypeVar("Job")
Result = TypeVar("Result")


class ServerError(UserError):
    """The server gives no usable answer. `status` is that of its last answer, None if there was none."""

    status: int | None = None


@dataclass(frozen=True, kw_only=True)
class JsonServer:
    """How to send requests. `key` is the group of these settings in the configuration."""

    url: str
    key: str
    url_name: str = "url"
    token_variable: str | None  # environment variable that holds the token
    retries: int
    timeout_seconds: float | None
    each_try: bool = False  # each try gets the time, and another follows; otherwise all tries share it
    size_name: str = "batch_size"  # the setting to lower for a server that is too slow
    expected: str  # what to do about an unusable answer

    @property
    def host(self) -> str:
        return public_address(self.url)

    def ask(
        self, body: Any, token: str | None, stop: threading.Event, warn: Callable[[str], None] | None = None
    ) -> Any:
        """The answer to one request. `warn` is called with a first failure, if another try follows.

        Raises ServerError. After `stop` is set, nothing more is sent.
        """
        sent, until = json.dumps(body).encode("ascii"), self._until()
        for tried in itertools.count(1):
            status, text, headers = self._post(sent, token, until)
            wait = min(_FIRST_WAIT * 2 ** (tried - 1), _LONGEST_WAIT)
            if (seconds := headers.get("Retry-After", "")).isdecimal():  # or a date
                wait = min(float(seconds), 2 * _LONGEST_WAIT)
            if status is None:
                passes = self.each_try or bool(text)
            elif 200 <= status < 300:
                try:
                    return json.loads(text)
                except (ValueError, RecursionError):
                    status, passes = 200, False
            else:
                passes = status in (408, 429) or status >= 500
            error = self._explain(status, _said(text), headers, token, tried, passes)
            late = not self.each_try and time.monotonic() + wait > until
            if tried > self.retries or late or not passes:
                raise error
            if warn is not None and tried == 1:
                warn(f"{error.where}: {error.problem}; trying again, up to {self.retries} times")
            if stop.wait(wait):
                raise error
            until = self._until() if self.each_try else until

    def error(self, name: str, problem: str, remedy: str, status: int | None = None) -> ServerError:
        error = ServerError(f"{self.key}.{name}", problem, remedy)
        error.status = status
        return error

    def _until(self) -> float:
        return math.inf if self.timeout_seconds is None else time.monotonic() + self.timeout_seconds

    def _post(self, sent: bytes, token: str | None, until: float) -> tuple[int | None, str, Any]:
        """Status, text and headers of the answer; without one None and the reason, "" for too late."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        left = None if until == math.inf else max(0.001, until - time.monotonic())
        try:
            request = Request(self.url, data=sent, headers=headers, method="POST")
            with build_opener(_AnyStatus).open(request, timeout=left) as response:  # through the environment's proxies
                answer = bytearray()
                while chunk := response.read1(_CHUNK):
                    answer += chunk
                    if time.monotonic() > until:
                        raise TimeoutError
                if response.length:  # bytes still missing
                    raise OSError("the connection was lost in the middle of an answer")
                return response.status, answer.decode("utf-8", "replace"), response.headers
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, URLError) else error
            ours = isinstance(cause, TimeoutError) and cause.errno is None  # the system's timeout is a lost connection
            return None, "" if ours else str(cause) or type(cause).__name__, {}

    def _explain(
        self, status: int | None, text: str, headers: Any, token: str | None, tried: int, passes: bool
    ) -> ServerError:
        host, said, name = self.host, excerpt(text, token), self.url_name
        tries = "in 1 try" if tried == 1 else f"in {tried} tries"
        remedy = "start the server, correct the address, or look at the server's log"
        if status is None and not text:
            name, problem = "timeout_seconds", f"{host} has not answered within {self.timeout_seconds:g} s, {tries}"
            remedy = f"see whether the server is stuck, lower {self.key}.{self.size_name}, or raise it"
        elif status is None:
            problem = f"{host} cannot be reached{said}, {tries}"
        elif passes:
            problem = f"{host} fails ({status}{said}), {tries}"
        elif status == 200:
            problem, remedy = f"{host} does not answer with JSON{said or ': nothing'}", self.expected
        elif status in (401, 403):  # without the message of a 401, which may quote the token
            said = said if status == 403 else ""
            problem = f"{self.token_variable} holds a token that {host} refuses"
            problem = f"{host} requires a token" if token is None else problem
            name, problem = "api_key_env", f"{problem} ({status}{said})"
            remedy = f"export {self.token_variable}{'' if token is None else ' anew'}"
            if self.token_variable is None:
                remedy = f"name the variable that holds it: {self.key}.api_key_env"
        elif 300 <= status < 400:
            place = excerpt(headers.get("Location"), token)
            problem, remedy = f"{host} redirects elsewhere ({status}{place})", "give that address"
        else:
            problem = f"{host} refuses the request ({status}{said})"
            remedy = "correct the address, or what the server makes of the request"
        return self.error(name, problem, remedy, status)


def ask_all(
    jobs: Sequence[Job], ask: Callable[[Job, threading.Event], Result], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield (number of a job, its result) as they come in. Raises the first error, and sets the event to end the rest.

    The threads are daemons, unlike an executor's, so that a signal does not wait for pending answers.
    """
    todo, stop = iter(range(len(jobs))), threading.Event()
    results: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        while not stop.is_set() and (number := next(todo, None)) is not None:
            try:
                results.put((number, ask(jobs[number], stop), None))
            except BaseException as error:
                stop.set()
                results.put((number, None, error))

    try:
        for _ in range(min(workers, len(jobs))):
            threading.Thread(target=work, name="server", daemon=True).start()
        for _ in jobs:
            number, result, error = results.get()
            if error is not None:
                raise error
            yield number, result
    finally:
        stop.set()


def _said(text: str) -> str:
    """A server's message, without the JSON around it."""
    message = re.search(r'"(?:message|detail|error)":\s*"((?:[^"\\]|\\.)+)"', text)
    return message[1] if message else text


class _AnyStatus(HTTPErrorProcessor):
    """Every status is an answer. A redirected POST would become a GET, and take the token to another host."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response
