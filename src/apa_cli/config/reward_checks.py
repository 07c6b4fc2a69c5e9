"""Do the keys of a reward fit each other? Of one, of several with weights, of one that is served. Imports no torch."""

from __future__ import annotations

import re
from importlib.util import find_spec
from urllib.parse import urlsplit

from apa_cli.config.schema import ScorerConfig, SeveralConfig, TrainConfig
from apa_cli.errors import UserError
from apa_cli.secrets import REDACTED, redact_text

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # capitals: a key pasted here by mistake is refused, and not repeated
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_OF_KIND = (("function", "function"), ("url", "http"), ("api_key_env", "http"), ("answer_column", "math"))
_TAKEN = ("mean", "std", "length_penalty")  # reward/… already
# logged/… already, offline; score would have a score_std
_TAKEN_LOGGED = ("score", "score_mean", "score_std", "response_length", "complete_fraction", "log_ratio")


def check_rewards(config: TrainConfig) -> None:
    """Raise UserError, naming the key and what to do, for the first thing that is wrong."""
    check_reward(config.reward, "reward", needed=config.needs_reward)
    check_reward(config.evaluation.reward, "evaluation.reward")
    for name in config.reward.components if config.rollout.offline else ():
        if name in _TAKEN_LOGGED:
            metric = "score_std" if name == "score" else name
            raise UserError(f"reward.components.{name}", f"logged/{metric} is another metric", "choose another name")
    _check_length(config)


def each_reward(config: TrainConfig) -> dict[str, ScorerConfig]:
    """Every single reward and component that a run asks, by the key under which it stands."""
    asked = [("reward", config.reward)] if config.needs_reward else []
    found: dict[str, ScorerConfig] = {}
    for key, reward in (*asked, ("evaluation.reward", config.evaluation.reward)):
        several: dict[str, ScorerConfig] = {
            f"{key}.components.{name}": part for name, part in reward.components.items()
        }
        found |= several or {key: reward}
    return found


def check_reward(reward: SeveralConfig, key: str, *, needed: bool = True) -> None:
    """`key` is where this reward stands in the configuration; one that is not needed may be missing."""
    if not reward.components:
        if needed or reward.kind != "model":
            _check_one(reward, key, several=True)
        return
    _check_alone(reward, key)
    for name, part in reward.components.items():
        where = f"{key}.components.{name}"
        _check_name(name, list(reward.components), where)
        if part.weight == 0:
            remedy = f"give it a weight, or remove it: ~{where}"
            raise UserError(f"{where}.weight", "0, so that it has no effect", remedy)
        _check_one(part, where)


def _check_alone(reward: SeveralConfig, key: str) -> None:
    """Several rewards leave no place for one beside them."""
    for name in ("path", "function", "url", "answer_column"):
        if getattr(reward, name) is not None:
            remedy = f"add {key}.{name}=null, or move it to a component: {key}.components.NAME.{name}"
            raise UserError(f"{key}.{name}", f"set, but the rewards are in {key}.components", remedy)
    default = type(reward)().kind
    if reward.kind != default:
        remedy = f"add {key}.kind={default}; each component has its own kind"
        raise UserError(f"{key}.kind", f"{reward.kind}, but the rewards are in {key}.components", remedy)


def _check_name(name: str, names: list[str], where: str) -> None:
    if not _NAME.fullmatch(name):
        remedy = "use letters, digits, _ and -, starting with a letter, such as brevity"
        raise UserError(where, "not usable as the name of a metric", remedy)
    own, _, last = name.rpartition("_")
    if name in _TAKEN or (last in ("std", "unreadable") and own in names):
        raise UserError(where, f"reward/{name} is another metric", "choose another name")


def _check_one(reward: ScorerConfig, key: str, *, several: bool = False) -> None:
    if reward.kind == "model" and reward.path is None and reward.function is None and reward.url is None:
        remedy = f"give a model: {key}.path=MODEL" + (f", or several rewards: {key}.components" if several else "")
        raise UserError(f"{key}.path", f"not set, but {key}.kind=model needs it", remedy)
    for name, kind in _OF_KIND:
        if reward.kind != kind and getattr(reward, name) is not None:
            remedy = f"add {key}.kind={kind}, or {key}.{name}=null"
            raise UserError(f"{key}.{name}", f"set, but {key}.kind={reward.kind}", remedy)
    if reward.kind == "function":
        if reward.function is None:
            raise UserError(
                f"{key}.function",
                f"not set, but {key}.kind=function needs it",
                f"name one: {key}.function=package.module:name, or path/to/file.py:name",
            )
        check_function(reward.function, f"{key}.function")
    if reward.kind == "http":
        if reward.url is None:
            remedy = f"give its address: {key}.url=http://HOST:PORT/PATH"
            raise UserError(f"{key}.url", f"not set, but {key}.kind=http needs it", remedy)
        check_url(reward.url, f"{key}.url", f"{key}.api_key_env", example="http://127.0.0.1:5000/score")
        if reward.api_key_env is not None:
            check_key_name(reward.api_key_env, f"{key}.api_key_env", example="REWARD_TOKEN")
    if reward.kind == "math":
        if reward.answer_column is None:
            remedy = f"name the column with the right answers: {key}.answer_column=COLUMN"
            raise UserError(f"{key}.answer_column", f"not set, but {key}.kind=math needs it", remedy)
        if find_spec("math_verify") is None:
            raise UserError(f"{key}.kind", "math needs math-verify", "pip install 'apa-cli[math]'")
    if reward.kind == "none" and reward.path is not None:
        raise UserError(f"{key}.path", f"set, but {key}.kind=none", f"add {key}.kind=model, or {key}.path=null")


def _check_length(config: TrainConfig) -> None:
    reward, longest = config.reward, config.generation.max_new_tokens
    if reward.length_penalty == 0:
        return
    if reward.length_target is None:
        remedy = "set the length that is free: reward.length_target=TOKENS, or set reward.length_penalty=0"
        raise UserError("reward.length_target", f"not set, but reward.length_penalty={reward.length_penalty:g}", remedy)
    if reward.length_target >= longest:
        problem = f"{reward.length_target}, but no response is longer than generation.max_new_tokens={longest}"
        raise UserError("reward.length_target", problem, "lower it, or set reward.length_penalty=0")


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
