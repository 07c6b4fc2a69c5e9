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
from apa_cli.evaluation.pairwise import Pair, Preference, Verdict, read_answer, tally, write_messages
from apa_cli.rewards.json_server import JsonServer, ServerError, ask_all
from apa_cli.secrets import read_key

WHERE = "evaluation.judge"


class EndpointJudge:
    """Judges each pair in both orders, within the caps. A preference that depends on the order is a tie."""

    def __init__(self, config: JudgeConfig) -> None:
        """Check the settings, without a request."""
        check_judge(config)
        self._config, self._spending = config, Spending(config)
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

    def judge(
        self, pairs: Sequence[Pair], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[list[Verdict], dict[str, Any]]:
        """Verdicts on the first `config.prompts` pairs, fewer if a cap is reached; and their account for eval.json.

        Raises UserError if the endpoint is down or refuses. The cost of earlier calls counts towards the caps.
        """
        pairs = pairs[: self._config.prompts or None]
        before, nonce = self._spending.spent.copy(), secrets.token_hex(8)
        token = read_key(self._config.api_key_env, f"{WHERE}.api_key_env")
        alike = [i for i, pair in enumerate(pairs) if pair.checkpoint == pair.initial]
        done = {i: Verdict(("tie", "tie"), asked=False) for i in alike}
        todo = [i for i in range(len(pairs)) if i not in done]
        alone = int(bool(self._spending.caps))  # the first one, as no size of a request is known before it
        for part in (todo[:alone], todo[alone:]):
            for number, verdict in ask_all(
                part, lambda i, stop: self._compare(pairs[i], nonce, token, stop), self._config.concurrency
            ):
                if verdict is not None:
                    done[part[number]] = verdict
                    progress(len(done), len(pairs))
        verdicts = [done[i] for i in sorted(done)]
        spent = self._spending.spent.copy()
        spent.subtract(before)
        account = {
            "model": self._config.model,
            "pairs": len(pairs),
            **tally(verdicts),
            **spent,
            "cost": self._spending.cost(spent),
            "stopped": self._spending.stopped if len(verdicts) < len(pairs) else None,
        }
        return verdicts, account

    def _compare(self, pair: Pair, nonce: str, token: str | None, stop: threading.Event) -> Verdict | None:
        """None if a cap allows no request."""

        def prefer(a: str, b: str, names: tuple[Preference, Preference]) -> Preference | None:
            """Ask, and again with a reminder if the answer cannot be read."""
            for reminder in (False, True):
                text = self._complete(
                    write_messages(pair.prompt, a, b, criterion=self._config.criterion, nonce=nonce, reminder=reminder),
                    token,
                    stop,
                )
                if text is None:
                    return None
                if answer := read_answer(text):
                    return "tie" if answer == "tie" else names[answer == "B"]
            return "unparsed"

        first = prefer(pair.checkpoint, pair.initial, ("checkpoint", "initial"))
        second = first and prefer(pair.initial, pair.checkpoint, ("initial", "checkpoint"))
        return Verdict((first, second)) if first and second else None

    def _complete(self, messages: list[dict[str, str]], token: str | None, stop: threading.Event) -> str | None:
        """The text of the answer."""
        options = {
            "temperature": self._config.temperature,
            "seed": self._config.seed,
            "max_completion_tokens": self._config.max_answer_tokens,
        }
        sent = {name: value for name, value in options.items() if value is not None}
        if stop.is_set() or not self._spending.admit():
            return None
        usage: tuple[int, int] | None = (0, 0)  # of a failed request: unknown, and rarely billed
        try:
            answer = self._server.ask({"model": self._config.model, "messages": messages, **sent}, token, stop)
            text, usage = _text(answer), _usage(answer)
            if text is not None:
                return text
            problem = f"{self._server.host} does not answer with chat completions"
            error = self._server.error("base_url", problem, self._server.expected)
        except ServerError as failed:
            error = failed
        finally:
            self._spending.settle(usage)
        raise self._explain(error)  # out of the except, so that no context holds the token

    def _explain(self, error: ServerError) -> ServerError:
        """The error in terms of the judge's settings."""
        if error.status == 404:
            problem = f"{error.problem}: it does not know {self._config.model}, or this address"
            remedy = f"correct the name, or {WHERE}.base_url (it often ends in /v1)"
            return self._server.error("model", problem, remedy)
        if error.status == 429:
            return self._server.error("concurrency", error.problem, f"lower it, raise {WHERE}.retries, or wait")
        return error


class Spending:
    """The tokens of the requests, counted by the judge's threads and kept under the caps.

    A request is admitted if the caps allow it and those in flight to be as large as the largest so far. So only a
    request larger than all before it, or a failed one, whose usage no server reports, can exceed a cap.
    """

    def __init__(self, config: JudgeConfig) -> None:
        prices = config.price_per_million_input, config.price_per_million_output
        self._prices = (prices[0] or 0.0) / 1e6, (prices[1] or 0.0) / 1e6  # of a token, in and out
        self._priced = None not in prices
        caps = ("max_tokens_total", config.max_tokens_total, (1, 1)), ("max_cost", config.max_cost, self._prices)
        self.caps = [(name, cap, per_token) for name, cap, per_token in caps if cap is not None]
        self._lock = threading.Lock()
        self._in_flight, self._largest = 0, (0, 0)  # tokens of one request, in and out
        self.spent: Counter[str] = Counter(requests=0, input_tokens=0, output_tokens=0, requests_without_usage=0)
        self.stopped: str | None = None  # why no more requests are admitted

    def admit(self) -> bool:
        """Whether a request may be sent now."""
        with self._lock:
            for name, cap, per_token in self.caps:
                spent = _total((self.spent["input_tokens"], self.spent["output_tokens"]), per_token)
                if spent + (self._in_flight + 1) * _total(self._largest, per_token) > cap:
                    self.stopped = self.stopped or f"{WHERE}.{name}={cap:.12g} is used up: {spent:.6g} spent"
            admitted = self.stopped is None
            self.spent["requests"] += admitted
            self._in_flight += admitted
            return admitted

    def settle(self, usage: tuple[int, int] | None) -> None:
        """Count the tokens of a request, in and out; None, if the server does not report them, ends capped judging."""
        with self._lock:
            self._in_flight -= 1
            if usage is not None:
                self.spent.update(input_tokens=usage[0], output_tokens=usage[1])
                self._largest = max(self._largest[0], usage[0]), max(self._largest[1], usage[1])
                return
            self.spent["requests_without_usage"] += 1
            for name, *_ in self.caps:
                self.stopped = f"the server reports no usage, so {WHERE}.{name} cannot be kept"

    def cost(self, spent: Counter[str]) -> float | None:
        """In the currency of the prices, None without them."""
        return _total((spent["input_tokens"], spent["output_tokens"]), self._prices) if self._priced else None


def _total(tokens: tuple[int, int], per_token: tuple[float, float]) -> float:
    return tokens[0] * per_token[0] + tokens[1] * per_token[1]


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
    try:
        return str(choices[0]["message"]["content"] or "")
    except (IndexError, KeyError, TypeError):
        return ""


def _usage(answer: Any) -> tuple[int, int] | None:
    """Tokens in and out; None if the server does not report them."""
    try:
        return int(answer["usage"]["prompt_tokens"]), int(answer["usage"]["completion_tokens"])
    except (KeyError, TypeError, ValueError):
        return None
