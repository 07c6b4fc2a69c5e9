"""What can be wrong with a judge's endpoint, one line each: in the settings, in the key, in what the server answers."""

from __future__ import annotations

from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from apa_cli.config.reward_checks import check_key_name, check_url
from apa_cli.config.schema import JudgeConfig
from apa_cli.errors import UserError
from apa_cli.secrets import excerpt, public_address

WHERE = "evaluation.judge"


class NotACompletionError(Exception):
    """The server answered 200 with something that is not a chat completion."""


def check_judge(judge: JudgeConfig) -> None:
    """Raise UserError for settings that cannot work together; limits of single fields are checked elsewhere."""
    if judge.base_url is None:
        if judge.model is not None:
            raise UserError(
                f"{WHERE}.model", f"set, but there is no {WHERE}.base_url", "give the endpoint, or set it to null"
            )
        return
    _check_url(judge.base_url)
    if judge.model is None:
        raise UserError(f"{WHERE}.model", "not set", f"name a model that the endpoint serves: {WHERE}.model=NAME")
    check_key_name(judge.api_key_env, f"{WHERE}.api_key_env", example="OPENAI_API_KEY")
    prices = {
        "price_per_million_input": judge.price_per_million_input,
        "price_per_million_output": judge.price_per_million_output,
    }
    missing = [name for name, price in prices.items() if price is None]
    if missing and (judge.max_cost is not None or len(missing) == 1):
        raise UserError(
            f"{WHERE}.{missing[0]}",
            "not set, so no cost can be counted",
            f"give both prices, or set {WHERE}.max_cost and both prices to null and cap {WHERE}.max_tokens_total",
        )


def _check_url(url: str) -> None:
    check_url(url, f"{WHERE}.base_url", f"{WHERE}.api_key_env", example="http://127.0.0.1:8000/v1")
    if urlsplit(url).path.rstrip("/").endswith("/completions"):
        raise UserError(
            f"{WHERE}.base_url", f"{url} is too long", "leave out /chat/completions, the client adds it itself"
        )


def require_client() -> ModuleType:
    """The official client; an optional extra."""
    try:
        import openai
    except ImportError:
        raise UserError(f"{WHERE}.base_url", "needs the extra", "pip install 'apa-cli[judge]'") from None
    return openai


def explain(error: Exception, judge: JudgeConfig, key: str | None) -> UserError | None:
    """The one line for an error that ends the judging, without the key; None if it is not the endpoint's doing."""
    openai = require_client()
    tries = f"{judge.retries + 1} {'try' if judge.retries == 0 else 'tries'}"
    if isinstance(error, NotACompletionError):
        return UserError(
            f"{WHERE}.base_url",
            f"{public_address(judge.base_url or '')} does not answer with chat completions",
            "give the address of an OpenAI-compatible endpoint; it often ends in /v1",
        )
    if isinstance(error, openai.APITimeoutError):
        return UserError(
            f"{WHERE}.timeout_seconds",
            f"{public_address(judge.base_url or '')} gave no answer within {judge.timeout_seconds:g} s, in {tries}",
            f"raise it, lower {WHERE}.concurrency, or see whether the server is stuck",
        )
    if isinstance(error, openai.APIConnectionError):
        return UserError(
            f"{WHERE}.base_url",
            f"cannot reach {public_address(judge.base_url or '')} in {tries}{excerpt(error.__cause__, key)}",
            "start the server or correct the address, or set it to null to go without a judge",
        )
    if isinstance(error, openai.APIStatusError):
        return _explain_status(error, judge, key, tries)
    return None


def _explain_status(error: Any, judge: JudgeConfig, key: str | None, tries: str) -> UserError:
    status = error.status_code
    said = excerpt(_message(error.body), key)
    if status == 401:  # the server's message is left out: it tends to quote the key
        if key is None:
            return UserError(
                f"{WHERE}.api_key_env",
                f"the server wants a key (401), and {judge.api_key_env} is not set",
                f"export {judge.api_key_env}=…, or name another variable",
            )
        return UserError(
            f"{WHERE}.api_key_env", f"the server refuses the key in {judge.api_key_env} (401)", "export a valid one"
        )
    if status == 403:
        return UserError(
            f"{WHERE}.api_key_env",
            f"the key in {judge.api_key_env} may not do this (403){said}",
            f"use another key or another {WHERE}.model",
        )
    if status == 404:
        return UserError(
            f"{WHERE}.model",
            f"{public_address(judge.base_url or '')} does not know {judge.model} or this address (404){said}",
            f"correct the name, or {WHERE}.base_url (it often ends in /v1)",
        )
    if status == 429:
        return UserError(
            f"{WHERE}.concurrency",
            f"the server still limits the rate or the quota (429) after {tries}{said}",
            f"lower it, raise {WHERE}.retries, or wait",
        )
    if status >= 500:
        return UserError(
            f"{WHERE}.base_url",
            f"{public_address(judge.base_url or '')} fails ({status}) after {tries}{said}",
            "look at the server, or try later",
        )
    return UserError(
        WHERE,
        f"the server refuses the request ({status}){said}",
        "correct what it names; temperature, seed and max_answer_tokens are left out when null",
    )


def _message(body: Any) -> Any:
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return body
