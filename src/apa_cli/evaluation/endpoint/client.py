"""An optional judge: an OpenAI-compatible chat endpoint compares a checkpoint's responses with the initial policy's.

It receives only the criterion, the prompt, the two responses and the key in its header. The key is read from the
environment for each call of `judge`, and is in no attribute, result, message or log.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from apa_cli.config.reward_checks import check_key_name, check_url
from apa_cli.config.schema import JudgeConfig
from apa_cli.errors import UserError
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
from apa_cli.rewards.json_server import JsonServer, ServerError, ask_all
from apa_cli.secrets import read_key

WHERE = "evaluation.judge"
Progress = Callable[[int, int], None]  # pairs done, pairs in all


class EndpointJudge:
    """Judges each pair in both orders; a preference that depends on the order is a tie."""

    def __init__(self, config: JudgeConfig) -> None:
        """Check the settings, without a request."""
        check_judge(config)
        self.config = config
        self.verdicts: list[Verdict] = []  # in the pairs' order; after an error, those judged before it
        self._pairs = 0
        self._spending = Spending(config, WHERE)
        self._spent_before: Counter[str] = Counter()
        self._stopped: str | None = None

    def judge(self, pairs: Sequence[Pair], progress: Progress | None = None) -> list[Verdict]:
        """Verdicts on the first `config.prompts` pairs, in their order, or fewer if a cap is reached.

        Raises UserError if the endpoint is down or refuses. After that or Ctrl-C, `verdicts` and `summary` hold what
        was judged before. The cost of earlier calls counts towards the caps.
        """
        pairs = list(pairs[: self.config.prompts or None])
        alike = [i for i, pair in enumerate(pairs) if pair.checkpoint == pair.initial]
        done = {i: Verdict(index=i, preferred=("tie", "tie"), asked=False) for i in alike}
        todo = [i for i in range(len(pairs)) if i not in done]
        self._pairs, self._stopped, self._spent_before = len(pairs), None, self._spending.spent.copy()
        asker = _Asker(self.config, self._spending, read_key(self.config.api_key_env, f"{WHERE}.api_key_env"))
        try:
            for number, verdict in ask_all(
                todo, lambda i, stop: asker.compare(i, pairs[i], stop), self.config.concurrency
            ):
                if verdict is not None:
                    done[todo[number]] = verdict
                    if progress is not None:
                        progress(len(done), len(pairs))
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
        """Results and cost of the last call of `judge`."""
        spent = self._spending.spent.copy()
        spent.subtract(self._spent_before)
        return JudgeSummary(
            model=self.config.model or "",
            pairs=self._pairs,
            stopped=self._stopped,
            cost=self._spending.cost(spent),
            **spent,
            **tally(self.verdicts),
        )


class _Asker:
    """Sends requests to one endpoint; shared by the workers."""

    def __init__(self, config: JudgeConfig, spending: Spending, token: str | None) -> None:
        self._config, self._spending, self._token = config, spending, token
        self._nonce = secrets.token_hex(8)
        self._server = JsonServer(
            url=f"{(config.base_url or '').rstrip('/')}/chat/completions",
            key=WHERE,
            url_name="base_url",
            token_variable=config.api_key_env,
            retries=config.retries,
            timeout_seconds=config.timeout_seconds,
            each_try=True,
            size_name="concurrency",
            expected="give the address of an OpenAI-compatible endpoint; it often ends in /v1",
        )

    def compare(self, index: int, pair: Pair, stop: threading.Event) -> Verdict | None:
        """None if a cap allows no request."""
        first = self._prefer(pair.prompt, pair.checkpoint, pair.initial, ("checkpoint", "initial"), stop)
        second = first and self._prefer(pair.prompt, pair.initial, pair.checkpoint, ("initial", "checkpoint"), stop)
        return Verdict(index=index, preferred=(first, second)) if first and second else None

    def _prefer(
        self, prompt: str, a: str, b: str, names: tuple[Preference, Preference], stop: threading.Event
    ) -> Preference | None:
        """Ask, and again with a reminder if the answer cannot be read."""
        for reminder in (False, True):
            messages = write_messages(
                prompt, a, b, criterion=self._config.criterion, nonce=self._nonce, reminder=reminder
            )
            text = self._complete(messages, stop)
            if text is None:
                return None
            if answer := read_answer(text):
                return "tie" if answer == "tie" else names[answer == "B"]
        return "unparsed"

    def _complete(self, messages: list[dict[str, str]], stop: threading.Event) -> str | None:
        """The text of the answer. An answer that is no completion, such as a proxy's page, gets a second try."""
        options = {
            "temperature": self._config.temperature,
            "seed": self._config.seed,
            "max_completion_tokens": self._config.max_answer_tokens,
        }
        sent = {name: value for name, value in options.items() if value is not None}
        body = {"model": self._config.model, "messages": messages, **sent}
        for _ in range(2):
            if not self._spending.admit(stop):
                return None
            usage: tuple[int, int] | None = (0, 0)  # of a failed request: unknown, and rarely billed
            try:
                answer = self._server.ask(body, self._token, stop)
                text, usage = _text(answer), _usage(answer)
                if text is not None:
                    return text
                error = self._server.error("base_url", f"{self._server.host} answers no chat completion", "", 200)
            except ServerError as failed:
                error = failed
            finally:
                self._spending.settle(usage)
            if error.status != 200:
                break
        raise self._explain(error)

    def _explain(self, error: ServerError) -> UserError:
        """The error in terms of the judge's settings."""
        server, model = self._server, self._config.model
        if error.status == 200:
            return server.error("base_url", f"{server.host} does not answer with chat completions", server.expected)
        if error.status == 404:
            problem = f"{error.problem}: it does not know {model}, or this address"
            return server.error("model", problem, f"correct the name, or {WHERE}.base_url (it often ends in /v1)")
        if error.status == 429:
            return server.error("concurrency", error.problem, f"lower it, raise {WHERE}.retries, or wait")
        return error


def check_judge(judge: JudgeConfig) -> None:
    """Raise UserError for settings that cannot work together."""
    if judge.base_url is None:
        raise UserError(f"{WHERE}.base_url", "not set", "give the address of a chat endpoint")
    check_url(judge.base_url, f"{WHERE}.base_url", f"{WHERE}.api_key_env", example="http://127.0.0.1:8000/v1")
    if urlsplit(judge.base_url).path.rstrip("/").endswith("/completions"):
        raise UserError(f"{WHERE}.base_url", f"{judge.base_url} is too long", "leave out /chat/completions")
    if judge.model is None:
        raise UserError(f"{WHERE}.model", "not set", f"name a model that the endpoint serves: {WHERE}.model=NAME")
    check_key_name(judge.api_key_env, f"{WHERE}.api_key_env", example="OPENAI_API_KEY")
    names = ("price_per_million_input", "price_per_million_output")
    missing = [name for name in names if getattr(judge, name) is None]
    if missing and (judge.max_cost is not None or len(missing) == 1):
        raise UserError(
            f"{WHERE}.{missing[0]}",
            "not set, so no cost can be counted",
            f"give both prices, or set {WHERE}.max_cost and both prices to null and cap {WHERE}.max_tokens_total",
        )


def _text(answer: Any) -> str | None:
    """The text of the first choice, empty without a choice (a filter) or text; None if it is no completion."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        return None
    message = choices[0].get("message") if choices and isinstance(choices[0], dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def _usage(answer: Any) -> tuple[int, int] | None:
    """Tokens in and out; None if the server does not report them."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    read, written = (
        (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (-1, -1)
    )
    if isinstance(read, int) and isinstance(written, int) and min(read, written) >= 0:
        return read, written
    return None
