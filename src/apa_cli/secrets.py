"""Keep secrets out of everything a run writes: configuration, overrides, report, log and wandb.

Three signs make a secret: the name of its key (`api_key`, `password`, …), a value that the environment holds under such
a name (`HF_TOKEN`, `DB_PASS`, …), and the form of a well-known kind of token (`hf_…`, `ghp_…`, `sk-…`). Of a web
address that the configuration holds, only the host and an ordinary path (`/v1/score`) are written.

Keys of servers are read from the environment when they are about to be used: `read_key`.
What is meant for people to read also shows its control characters instead of letting a terminal obey them: `printable`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from apa_cli.errors import UserError

REDACTED = "***"
_KEY = re.compile(r"[!-~]+")  # what a header can carry
_EXCERPT = 200  # characters of a server's own message

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = {
    *("password", "passwd", "passphrase", "pass", "pwd", "pat", "secret", "secrets", "apikey", "credential"),
    *("credentials", "auth", "bearer", "jwt", "webhook", "dsn", "cookie"),
}
# A key that ends in one of these is secret, unless the word before it says what else it is.
_SECRET_ENDINGS = {
    "token": {"eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "end", "start", "image", "per", "special"},
    "key": {"prompt", "column", "label", "sort", "primary", "metric", "dict", "state"},
}
_STAGES = {"prod", "production", "dev", "test", "staging", "stage", "live", "old", "new", "value", "b64", "base", "pem"}
_IN_VARIABLES = {*_SECRET_WORDS, *_SECRET_ENDINGS, "keys", "tokens", "passwords", "pats", "webhooks", "conn"}
_NOT_SECRET = {"PWD", "OLDPWD"}  # the shell's, folders
_ASSIGNMENT = re.compile(r"^(?P<key>[+~]*[\w.\-/@]+)=(?P<value>.+)$", re.DOTALL)
# Passwords in addresses, keys given in place of a user, and those among the parameters of a query.
_URL_PASSWORD = re.compile(r"(:/{1,2}[^/\s:@]*:)[^/\s@]+(?=@)")  # a path of one slash is what folders make of two
_URL_TOKEN = re.compile(r"(://)[^/\s:@]{20,}(?=@)")
_URL_QUERY = re.compile(r"([?&](?:[\w-]*[_-])?(?:token|key|secret|password|sig|signature)=)[^&\s#'\"]+", re.IGNORECASE)
_WEBHOOK = re.compile(r"(https?:/{1,2}hooks\.[\w.-]+/)[^\s'\"]+")
_TOKEN_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}"
    r"|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
# What the path of an endpoint ordinarily consists of; anything else in it may be a token.
_ENDPOINT_WORDS = {
    *("", "api", "v0", "v1", "v2", "v3", "openai", "chat", "completions", "score", "scores", "reward", "rewards"),
    *("get_reward", "predict", "classify", "pooling", "judge", "infer", "rm", "health"),
}
_ADDRESS_KEYS = {"url", "uri", "base_url", "endpoint"}
# Addresses after such a key in a text, as in `reward.url=http://a/x,http://b/y`; Hydra writes their colons as \:
_ADDRESS_SETTING = re.compile(
    r"((?:\b|_)(?:url|uri|endpoint)['\"]?(?:=|: *)['\"]?)((?:,?https?\\?:/{1,2}[^\s,'\"\]})]*)+)"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_EQUAL_LENGTH = 8  # shorter values of the environment are too likely to be ordinary words
_WITHIN_LENGTH = 12  # as long as this, a value is also looked for inside longer strings


def is_secret_name(name: str) -> bool:
    """Whether the last part of a dotted key names a secret. Plurals such as `max_tokens` count things and do not."""
    words = [word.lower() for word in _WORD.findall(name.rsplit(".", 1)[-1])]
    while len(words) > 1 and words[-1] in _STAGES:  # MY_API_KEY_PROD
        words.pop()
    if not words:
        return False
    if _SECRET_WORDS.intersection(words):
        return True
    before = words[-2] if len(words) > 1 else ""
    return words[-1] in _SECRET_ENDINGS and before not in _SECRET_ENDINGS[words[-1]]


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: a secret's word anywhere in it is enough."""
    words = {word.lower() for word in _WORD.findall(name)}
    return name not in _NOT_SECRET and (
        not words.isdisjoint(_IN_VARIABLES) or name.upper().endswith(("PASSWORD", "PASSWD", "PASS", "TOKEN", "APIKEY"))
    )


def environment_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of environment variables with a secret's name, longest first."""
    variables = os.environ if environment is None else environment
    values = {v for k, v in variables.items() if len(v) >= _EQUAL_LENGTH and is_secret_variable(k)}
    return tuple(sorted(values, key=len, reverse=True))


def redact_text(text: str, secrets: tuple[str, ...] | None = None) -> str:
    """`text` without values of the environment's secrets, well-known tokens, and passwords and keys inside URLs."""
    for secret in environment_secrets() if secrets is None else secrets:
        if text == secret:
            return REDACTED
        if len(secret) >= _WITHIN_LENGTH:
            text = text.replace(secret, REDACTED)
    for pattern in (_URL_PASSWORD, _URL_TOKEN, _URL_QUERY, _WEBHOOK):
        text = pattern.sub(rf"\g<1>{REDACTED}", text)
    text = _ADDRESS_SETTING.sub(lambda match: match[1] + ",".join(map(public_address, match[2].split(","))), text)
    return _TOKEN_FORMS.sub(REDACTED, text)


def printable(text: str, secrets: tuple[str, ...] | None = None) -> str:
    r"""`text` for a terminal, a log or a page: redacted, and control characters shown as `\x1b`, but for \n and \t.

    Among them are those that turn the direction of what follows, which can make a text read as another.
    """
    return _CONTROL.sub(lambda match: _escape(ord(match[0])), redact_text(text, secrets))


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def public_address(url: str) -> str:
    """A web address as it may be written: its host, and its path where that is made of an endpoint's ordinary words."""
    try:
        parts = urlsplit(url.replace("\\:", ":"))
        host = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return redact_text(url)
    if parts.scheme not in ("http", "https"):
        return redact_text(url)
    ordinary = all(word.lower() in _ENDPOINT_WORDS for word in parts.path.split("/"))
    return urlunsplit((parts.scheme, host, parts.path if ordinary else f"/{REDACTED}", "", ""))


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
    if isinstance(key, str) and isinstance(value, str) and key.rsplit(".", 1)[-1].lower() in _ADDRESS_KEYS:
        return _redact(public_address(value), secrets)
    return _redact(value, secrets)


def read_key(variable: str, where: str) -> str | None:
    """The key, None where there is none; `where` is the configuration key that names the variable."""
    key = os.environ.get(variable, "").strip()
    if key and not _KEY.fullmatch(key):
        raise UserError(
            where,
            f"the key in {variable} has characters that no key has (blanks, line ends, accents)",
            "export it again",
        )
    return key or None


def excerpt(message: object, key: str | None) -> str:
    """`: message`, short, printable and without the key; nothing for an empty one."""
    text = "" if message is None else str(message)
    text = redact_text(text.replace(key, REDACTED) if key else text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f": {text[:_EXCERPT]}{'…' if len(text) > _EXCERPT else ''}" if text else ""
