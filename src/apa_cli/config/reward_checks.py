"""Do the keys of a reward fit each other? Of one, of several with weights, of one that is served. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.util import find_spec
from urllib.parse import urlsplit

from apa_cli.config.schema import ScorerConfig, SeveralConfig, TrainConfig
from apa_cli.errors import UserError
from apa_cli.secrets import REDACTED, redact_text

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # capitals: a key pasted here by mistake is refused, and not repeated
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_OF_KIND = (("function", "function"), ("url", "http"), ("api_key_env", "http"), ("answer_column", "math"))
_NEEDS = {"function": "function", "http": "url", "math": "answer_column"}
_FORMS = {
    "function": "package.module:name, or path/to/file.py:name",
    "url": "http://HOST:PORT/PATH",
    "answer_column": "COLUMN, the column with the right answers",
}
_TAKEN = ("mean", "std", "length_penalty")  # reward/… already
# logged/… already, offline; score would have a score_std
_TAKEN_LOGGED = ("score", "score_mean", "score_std", "response_length", "complete_fraction", "log_ratio")


def check_rewards(config: TrainConfig) -> None:
    """Raise UserError, naming the key and what to do, for the first thing that is wrong."""
    taken = (*_TAKEN, *_TAKEN_LOGGED) if config.rollout.offline else _TAKEN
    for key, reward, needed in (
        ("reward", config.reward, config.needs_reward),
        ("evaluation.reward", config.evaluation.reward, True),
    ):
        if reward.components:
            _check_several(reward, key, taken if key == "reward" else _TAKEN)
        elif needed or reward.kind != "model":
            _check_one(reward, key, f", or several rewards: {key}.components")
    target, longest = config.reward.length_target, config.generation.max_new_tokens
    if config.reward.length_penalty > 0 and (target is None or target >= longest):
        problem = f"{target}, but no response is longer than generation.max_new_tokens={longest}"
        if target is None:
            problem = f"not set, but reward.length_penalty={config.reward.length_penalty:g}"
        remedy = "set the length that is free, reward.length_target=TOKENS, or reward.length_penalty=0"
        raise UserError("reward.length_target", problem, remedy)


def each_reward(config: TrainConfig) -> dict[str, ScorerConfig]:
    """Every single reward and component that a run asks, by the key under which it stands."""
    return {key: part for _, key, part in config.scorers()}


def _check_several(reward: SeveralConfig, key: str, taken: Collection[str]) -> None:
    default = type(reward)().kind
    for name, unused in (*dict.fromkeys(("path", "function", "url", "answer_column")).items(), ("kind", default)):
        if getattr(reward, name) != unused:
            remedy = f"add {key}.{name}={unused or 'null'}, or move it to a component: {key}.components.NAME.{name}"
            raise UserError(f"{key}.{name}", f"set, but the rewards are in {key}.components", remedy)
    for name, part in reward.components.items():
        where = f"{key}.components.{name}"
        if not _NAME.fullmatch(name):
            remedy = "use letters, digits, _ and -, starting with a letter, such as brevity"
            raise UserError(where, "not usable as the name of a metric", remedy)
        own, _, last = name.rpartition("_")
        if name in taken or (last in ("std", "unreadable") and own in reward.components):
            raise UserError(where, f"{name} is the name of another metric", "choose another name")
        if part.weight == 0:
            remedy = f"give it a weight, or remove it: ~{where}"
            raise UserError(f"{where}.weight", "0, so that it has no effect", remedy)
        _check_one(part, where)


def _check_one(reward: ScorerConfig, key: str, or_else: str = "") -> None:
    kind, needed = reward.kind, _NEEDS.get(reward.kind, "")
    if kind == "model" and reward.path is None and reward.function is None and reward.url is None:
        remedy = f"give a model: {key}.path=MODEL{or_else}"
        raise UserError(f"{key}.path", f"not set, but {key}.kind=model needs it", remedy)
    if kind == "none" and reward.path is not None:
        raise UserError(f"{key}.path", f"set, but {key}.kind=none", f"add {key}.kind=model, or {key}.path=null")
    for name, owner in _OF_KIND:
        if kind != owner and getattr(reward, name) is not None:
            remedy = f"add {key}.kind={owner}, or {key}.{name}=null"
            raise UserError(f"{key}.{name}", f"set, but {key}.kind={kind}", remedy)
    if needed and getattr(reward, needed) is None:
        remedy = f"give it: {key}.{needed}={_FORMS[needed]}"
        raise UserError(f"{key}.{needed}", f"not set, but {key}.kind={kind} needs it", remedy)
    if kind == "function":
        check_function(reward.function or "", f"{key}.function")
    if kind == "http":
        check_url(reward.url or "", f"{key}.url", f"{key}.api_key_env", example="http://127.0.0.1:5000/score")
        if reward.api_key_env is not None:
            check_key_name(reward.api_key_env, f"{key}.api_key_env", example="REWARD_TOKEN")
    if kind == "math" and find_spec("math_verify") is None:
        raise UserError(f"{key}.kind", "math needs math-verify", "pip install 'apa-cli[math]'")


def check_function(function: str, key: str) -> None:
    """`module:name` or `path/to/file.py:name`; whether it exists is found out where it is loaded."""
    place, colon, name = function.rpartition(":")
    is_file = place.endswith(".py")
    is_module = bool(place) and all(part.isidentifier() for part in place.split("."))
    if not (colon and name.isidentifier() and (is_file or is_module)):
        raise UserError(
            key,
            f"{function!r} does not name a function",
            "write package.module:name, or path/to/file.py:name",
        )


def check_key_name(name: str, key: str, *, example: str) -> None:
    """A key itself in place of its variable's name would be written into the run's folder; so it is not repeated."""
    if not _VARIABLE.fullmatch(name):
        raise UserError(
            key,
            "not the name of an environment variable (capitals, digits and _)",
            f"export the key under a name such as {example} and give that name, never the key itself",
        )


def check_url(url: str, key: str, key_of_secret: str, *, example: str) -> None:
    """A plain web address, without anything secret in it but perhaps its path."""
    if REDACTED in url:
        raise UserError(
            key, "its path is not stored in config.yaml, since it may be a secret", f"give it again: {key}=URL"
        )
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        valid = valid and url.isprintable() and " " not in url
    except ValueError:
        valid = False
    if valid and ("@" in parts.netloc or parts.query or parts.fragment):
        raise UserError(
            key,
            "contains a user name, a password, a query or a fragment",
            f"give the plain address; put the key in the environment variable that {key_of_secret} names",
        )
    if not valid:
        raise UserError(key, f"{redact_text(url)!r} is not a web address", f"write it like {example}")
