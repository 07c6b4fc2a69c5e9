"""Send JSON requests to a server, with retries and one-line errors."""

from __future__ import annotations

import http.client
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

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

        Raises ServerError, outside of any `except`, so that its context holds no token. After `stop` is set, nothing
        more is sent.
        """
        sent, tried = json.dumps(body).encode("ascii"), 0
        until = self._until()
        while True:
            tried += 1
            try:
                return self._post(sent, token, until)
            except _FailedError as caught:
                failed = caught
            wait = min(_FIRST_WAIT * 2 ** (tried - 1), _LONGEST_WAIT) if failed.wait is None else failed.wait
            late = not self.each_try and time.monotonic() + wait > until
            error = self._explain(failed, token, tried)
            if tried > self.retries or late or not failed.passes(self.each_try):
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

    def _post(self, sent: bytes, token: str | None, until: float) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        left = None if until == math.inf else max(0.001, until - time.monotonic())
        try:
            request = Request(self.url, data=sent, headers=headers, method="POST")
            with build_opener(_NoRedirect).open(request, timeout=left) as response:  # through the environment's proxies
                answer = bytearray()
                while chunk := response.read1(_CHUNK):
                    answer += chunk
                    if time.monotonic() > until:
                        raise TimeoutError
                if response.length:  # bytes still missing
                    raise OSError("the connection was lost in the middle of an answer")
        except HTTPError as error:
            raise _FailedError(error.code, _said(error), error.headers) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, URLError) else error
            ours = isinstance(cause, TimeoutError) and cause.errno is None  # the system's timeout is a lost connection
            raise _FailedError(None, None if ours else str(cause) or type(cause).__name__) from None
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise _FailedError(200, answer[:1000].decode("utf-8", "replace")) from None

    def _explain(self, failed: _FailedError, token: str | None, tried: int) -> ServerError:
        status, said, host = failed.status, excerpt(failed.said, token), self.host
        tries = "in 1 try" if tried == 1 else f"in {tried} tries"
        if status == 200:
            return self.error(
                self.url_name, f"{host} does not answer with JSON{said or ': nothing'}", self.expected, 200
            )
        if status is None and failed.said is None:
            problem = f"{host} has not answered within {self.timeout_seconds:g} s, {tries}"
            remedy = f"see whether the server is stuck, lower {self.key}.{self.size_name}, or raise it"
            return self.error("timeout_seconds", problem, remedy)
        if status is None or failed.passes(self.each_try):
            problem = f"cannot be reached{said}" if status is None else f"fails ({status}{said})"
            remedy = "start the server, correct the address, or look at the server's log"
            return self.error(self.url_name, f"{host} {problem}, {tries}", remedy, status)
        if status in (401, 403):  # without the message of a 401, which may quote the token
            variable = self.token_variable
            problem, remedy = f"{host} requires a token ({status})", f"export {variable}"
            if variable is None:
                remedy = f"name the variable that holds it: {self.key}.api_key_env"
            elif token is not None:
                problem = f"{variable} holds a token that {host} refuses ({status}{said if status == 403 else ''})"
                remedy += " anew"
            return self.error("api_key_env", problem, remedy, status)
        if 300 <= status < 400:
            problem = f"{host} redirects elsewhere ({status}{excerpt(failed.location, token)})"
            return self.error(self.url_name, problem, "give that address", status)
        remedy = "correct the address, or what the server makes of the request"
        return self.error(self.url_name, f"{host} refuses the request ({status}{said})", remedy, status)


def ask_all(
    jobs: Sequence[Job], ask: Callable[[Job, threading.Event], Result], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield (number of a job, its result) as they come in. Raises the first error, and sets the event to end the rest.

    The threads are daemons, unlike an executor's, so that a signal does not wait for pending answers.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for number in range(len(jobs)):
        todo.put(number)

    def work() -> None:
        while not stop.is_set():
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
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


class _FailedError(Exception):
    """A try without an answer: a status and the server's words, or no status and a reason, None for a timeout."""

    def __init__(self, status: int | None, said: str | None, headers: Any = None) -> None:
        super().__init__()
        self.status, self.said = status, said
        self.location = None if headers is None else headers.get("Location")
        self.wait: float | None = None
        if headers is not None and (seconds := headers.get("Retry-After", "")).isdecimal():  # or a date
            self.wait = min(float(seconds), 2 * _LONGEST_WAIT)

    def passes(self, each_try: bool) -> bool:
        """Whether another try may help."""
        if self.status is None:
            return each_try or self.said is not None
        return self.status in (408, 429) or self.status >= 500


def _said(error: HTTPError) -> str:
    """The server's message, without the JSON around it."""
    try:
        said = error.read(2000).decode("utf-8", "replace")
        content = json.loads(said)
    except (OSError, http.client.HTTPException):
        return ""
    except (ValueError, RecursionError):
        return said
    for name in ("error", "message", "detail"):
        if isinstance(content, dict) and content.get(name):
            content = content[name]
    return content if isinstance(content, str) else said


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST would become a GET, and take the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None
