"""Keep secrets out of everything a run writes: configuration, overrides, report, log and wandb.

Two signs make a secret: the name of its key (`api_key`, `password`, …), or a value that the environment holds under
such a name (`HF_TOKEN`, `WANDB_API_KEY`, …).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "***"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = {"password", "passwd", "passphrase", "secret", "secrets", "apikey", "credential", "credentials"}
# A key that ends in one of these is secret, unless the word before it says what else it is.
_SECRET_ENDINGS = {
    "token": {"eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "end", "start", "image", "per", "special"},
    "key": {"prompt", "column", "label", "sort", "primary", "metric", "dict", "state"},
}
_SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|APIKEY|CREDENTIALS)$|PASSWORD$", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"^(?P<key>[+~]*[\w.\-/@]+)=(?P<value>.+)$", re.DOTALL)
# Passwords in addresses, keys given in place of a user, and those among the parameters of a query.
_URL_PASSWORD = re.compile(r"(:/{1,2}[^/\s:@]*:)[^/\s@]+(?=@)")  # a path of one slash is what folders make of two
_URL_TOKEN = re.compile(r"(://)[^/\s:@]{20,}(?=@)")
_URL_QUERY = re.compile(r"([?&](?:[\w-]*[_-])?(?:token|key|secret|password|sig|signature)=)[^&\s#'\"]+", re.IGNORECASE)

_EQUAL_LENGTH = 8  # shorter values of the environment are too likely to be ordinary words
_WITHIN_LENGTH = 12  # as long as this, a value is also looked for inside longer strings


def is_secret_name(name: str) -> bool:
    """Whether the last part of a dotted key names a secret. Plurals such as `max_tokens` count things and do not."""
    words = [word.lower() for word in _WORD.findall(name.rsplit(".", 1)[-1])]
    if not words:
        return False
    if _SECRET_WORDS.intersection(words):
        return True
    before = words[-2] if len(words) > 1 else ""
    return words[-1] in _SECRET_ENDINGS and before not in _SECRET_ENDINGS[words[-1]]


def environment_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of environment variables with a secret's name, longest first."""
    variables = os.environ if environment is None else environment
    values = {v for k, v in variables.items() if _SECRET_VARIABLE.search(k) and len(v) >= _EQUAL_LENGTH}
    return tuple(sorted(values, key=len, reverse=True))


def redact_text(text: str, secrets: tuple[str, ...] | None = None) -> str:
    """`text` without values of the environment's secrets and without passwords and keys inside URLs."""
    for secret in environment_secrets() if secrets is None else secrets:
        if text == secret:
            return REDACTED
        if len(secret) >= _WITHIN_LENGTH:
            text = text.replace(secret, REDACTED)
    for pattern in (_URL_PASSWORD, _URL_TOKEN, _URL_QUERY):
        text = pattern.sub(rf"\g<1>{REDACTED}", text)
    return text


def redact(obj: Any) -> Any:
    """A copy of `obj` (mappings, sequences, dataclasses, plain values) with every secret replaced by `***`.

    A string `key=value`, as in Hydra's overrides, is judged by its key. Numbers, booleans, None and empty strings stay:
    they tell whether a secret was set, never what it is.
    """
    return _redact(obj, environment_secrets())


def _redact(obj: Any, secrets: tuple[str, ...]) -> Any:
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        obj = dataclasses.asdict(obj)
    if isinstance(obj, Mapping):
        return {key: _redact_named(key, value, secrets) for key, value in obj.items()}
    if isinstance(obj, (list, tuple, set, frozenset)):
        return [_redact(value, secrets) for value in obj]
    if isinstance(obj, str):
        assignment = _ASSIGNMENT.match(obj)
        if assignment and is_secret_name(assignment["key"]):
            return f"{assignment['key']}={REDACTED}"
        return redact_text(obj, secrets)
    return obj


def _redact_named(key: Any, value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(key, str) and is_secret_name(key):
        if isinstance(value, str) and value:
            return REDACTED
        if isinstance(value, (list, tuple)):
            return [REDACTED for _ in value]
    return _redact(value, secrets)
