"""An optional judge: any OpenAI-compatible chat endpoint compares a checkpoint's responses with the initial policy's.

Nothing is sent but the criterion, the prompt and the two responses, and the key in its header. The key is read from the
environment when the asking begins, and is in no attribute, result, message or log of this package.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from apa_cli.config.schema import JudgeConfig
from apa_cli.errors import UserError
from apa_cli.evaluation.endpoint.errors import (
    WHERE,
    NotACompletionError,
    check_judge,
    explain,
    require_client,
)
from apa_cli.evaluation.endpoint.spending import Spending
from apa_cli.evaluation.pairwise import (
    JudgeSummary,
    Pair,
    Preference,
    Verdict,
    read_answer,
    tally,
    write_messages,
)
from apa_cli.secrets import REDACTED, read_key, redact_text

Progress = Callable[[int, int], None]  # pairs done, pairs in all


class EndpointJudge:
    """Asks about each pair in both orders; a preference that depends on the order is a tie."""

    def __init__(self, config: JudgeConfig) -> None:
        """Checks the settings and that the client is installed; sends nothing."""
        check_judge(config)
        if config.base_url is None:
            raise UserError(f"{WHERE}.base_url", "not set", "give the address of a chat endpoint")
        require_client()
        self.config = config
        self.verdicts: list[Verdict] = []  # in the pairs' order; after an error, those judged before it
        self._pairs = 0
        self._spending = Spending(config)
        self._spent_before = self._spending.report()
        self._stopped: str | None = None

    def judge(self, pairs: Sequence[Pair], progress: Progress | None = None) -> list[Verdict]:
        """Verdicts in the order of the pairs: all of the first `config.prompts`, or fewer when the cost cap is reached.

        Raises UserError, one line, when the endpoint is down or refuses; `verdicts` and `summary` then hold what was
        judged before, as they do after Ctrl-C. What was spent in earlier calls counts towards the cap.
        """
        pairs = list(pairs[: self.config.prompts or None])
        done = {i: _identical(i) for i, pair in enumerate(pairs) if pair.checkpoint == pair.initial}
        self.verdicts, self._pairs, self._stopped = [], len(pairs), None
        self._spent_before = self._spending.report()
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(pairs)):
            if i not in done:
                todo.put(i)
        try:
            self._run(pairs, todo, done, progress)
            self._stopped = self._spending.stopped if len(done) < len(pairs) else None
        except UserError as error:
            self._stopped = str(error)
            raise
        except KeyboardInterrupt:
            self._stopped = "interrupted"
            raise
        finally:
            self.verdicts = [done[i] for i in sorted(done)]
        return self.verdicts

    def summary(self) -> JudgeSummary:
        """What the last call of `judge` came to, and what it spent."""
        spent: dict[str, Any] = {
            name: None if value is None else value - self._spent_before[name]
            for name, value in self._spending.report().items()
        }
        return JudgeSummary(
            model=self.config.model or "",
            pairs=self._pairs,
            stopped=self._stopped,
            **spent,
            **tally(self.verdicts),
        )

    def _run(
        self,
        pairs: Sequence[Pair],
        todo: queue.SimpleQueue[int],
        done: dict[int, Verdict],
        progress: Progress | None,
    ) -> None:
        """Fill `done`. Workers are daemons, so that Ctrl-C need not wait for an answer on its way."""
        key = read_key(self.config.api_key_env, f"{WHERE}.api_key_env")
        client = _connect(self.config, key)
        asker = _Asker(client, self.config, self._spending)
        results: queue.SimpleQueue[Verdict | Exception | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                while True:
                    index = todo.get_nowait()
                    results.put(asker.compare(index, pairs[index]))
            except (queue.Empty, _StoppedError):
                results.put(None)
            except Exception as error:
                results.put(error)

        workers = min(self.config.concurrency, todo.qsize())
        try:
            for number in range(workers):
                threading.Thread(target=work, name=f"judge-{number}", daemon=True).start()
            while workers:
                result = results.get()
                if isinstance(result, Verdict):
                    done[result.index] = result
                    if progress is not None:
                        progress(len(done), len(pairs))
                elif result is None:
                    workers -= 1
                else:  # raised outside of any `except`: its context would hold the request, and with it the key
                    raise explain(result, self.config, key) or result
        finally:
            asker.stop.set()
            with contextlib.suppress(Exception):
                client.close()  # also ends the client's own retries in the other workers


def _identical(index: int) -> Verdict:
    return Verdict(index=index, preferred=("tie", "tie"), asked=False)


def _connect(config: JudgeConfig, key: str | None) -> Any:
    """The client retries 408, 409, 429, 5xx, timeouts and lost connections: exponential, or as Retry-After says."""
    try:
        client = require_client().OpenAI(
            base_url=config.base_url,
            api_key=key or "none",  # the client insists on one, and would otherwise take another from the environment
            timeout=config.timeout_seconds,
            max_retries=config.retries,
        )
    except UserError:
        raise
    except Exception as error:  # such as a proxy setting that the client cannot use
        problem = f"the client cannot be set up ({type(error).__name__}: {redact_text(str(error))})"
        problem = problem.replace(key, REDACTED) if key else problem
    else:
        host = urlsplit(config.base_url or "").hostname or ""
        if host != "openai.com" and not host.endswith(".openai.com"):
            client.organization = client.project = None  # from the environment, and nobody else's business
        return client
    raise UserError(f"{WHERE}.base_url", problem, "correct the address, or the proxy settings of the environment")


class _StoppedError(Exception):
    """No further request is to be sent."""


class _Asker:
    """Asks one endpoint; shared by the workers."""

    def __init__(self, client: Any, config: JudgeConfig, spending: Spending) -> None:
        self._client, self._config, self._spending = client, config, spending
        self._nonce = secrets.token_hex(8)
        self.stop = threading.Event()

    def compare(self, index: int, pair: Pair) -> Verdict:
        first = self._prefer(pair.prompt, pair.checkpoint, pair.initial, names=("checkpoint", "initial"))
        second = self._prefer(pair.prompt, pair.initial, pair.checkpoint, names=("initial", "checkpoint"))
        return Verdict(index=index, preferred=(first, second))

    def _prefer(self, prompt: str, a: str, b: str, *, names: tuple[Preference, Preference]) -> Preference:
        """Ask, and once more with a reminder if the answer cannot be read."""
        for reminder in (False, True):
            messages = write_messages(
                prompt, a, b, criterion=self._config.criterion, nonce=self._nonce, reminder=reminder
            )
            answer = read_answer(self._complete(messages))
            if answer is not None:
                return "tie" if answer == "tie" else names[answer == "B"]
        return "unparsed"

    def _complete(self, messages: list[dict[str, str]]) -> str:
        """The text of the answer. A body that is no completion, such as a proxy's page, gets a second chance."""
        try:
            return self._request(messages)
        except NotACompletionError:
            return self._request(messages)

    def _request(self, messages: list[dict[str, str]]) -> str:
        if not self._spending.admit(self.stop):
            raise _StoppedError
        options = {
            "temperature": self._config.temperature,
            "seed": self._config.seed,
            "max_completion_tokens": self._config.max_answer_tokens,
        }
        sent = {name: value for name, value in options.items() if value is not None}
        usage: tuple[int, int] | None = (0, 0)  # what a failed request used is unknown, and rarely billed
        try:
            completion = self._client.chat.completions.create(model=self._config.model, messages=messages, **sent)
            text = _text(completion)
            usage = _usage(completion)
            return text
        except ValueError as error:  # a body that is not JSON
            raise NotACompletionError(type(error).__name__) from None
        finally:
            self._spending.settle(usage)


def _text(completion: Any) -> str:
    """The first choice's text; empty when the server gives no choice (a filter) or no text."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list):
        raise NotACompletionError("no choices")
    content = getattr(getattr(choices[0], "message", None), "content", None) if choices else None
    return content if isinstance(content, str) else ""


def _usage(completion: Any) -> tuple[int, int] | None:
    """Tokens in and out; None if the server does not say."""
    usage = getattr(completion, "usage", None)
    counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
    return counts if all(isinstance(n, int) and n >= 0 for n in counts) else None  # type: ignore[return-value]
