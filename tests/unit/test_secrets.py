import dataclasses

import pytest

from apa_cli.config.schema import TrainConfig
from apa_cli.secrets import (
    REDACTED,
    environment_secrets,
    is_secret_name,
    printable,
    public_address,
    redact,
    redact_text,
)

PLANTED = "hf_planted-0123456789"


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hf_token", "HF_TOKEN", "api_key", "apiKey", "reward.api_key", "client_secret", "db_password"),
        "accessToken",
        *("reward.db_pass", "github_pat", "auth", "slack_webhook", "my_api_key_prod", "sentry_dsn", "session_cookie"),
    ],
)
def test_secret_names(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["max_new_tokens", "microbatch_tokens", "max_tokens", "tokens_per_second", "eos_token", "pad_token", "monkey", ""],
)
def test_innocent_names(name):
    assert not is_secret_name(name)


def test_no_key_of_the_configuration_is_taken_for_a_secret():
    config = TrainConfig(output_dir="runs/token")
    assert redact(config) == dataclasses.asdict(config)


def test_values_under_secret_names_go_and_the_rest_stays():
    given = {"wandb": {"api_key": "abc", "project": "p"}, "tokens": 5, "token": None, "hf_token": "", "keys": ["a"]}
    expected = {
        "wandb": {"api_key": REDACTED, "project": "p"},
        "tokens": 5,
        "token": None,
        "hf_token": "",
        "keys": ["a"],
    }
    assert redact(given) == expected
    assert given["wandb"]["api_key"] == "abc"  # the original is untouched


def test_lists_under_secret_names_go():
    assert redact({"password": ["a", "b"]}) == {"password": [REDACTED, REDACTED]}


def test_overrides_are_judged_by_their_key():
    given = [
        "objective.kl_lambda=0.3",
        "+reward.api_key=abc=def",
        "generation.max_new_tokens=8",
        "data.prompt_column=key",
    ]
    expected = ["objective.kl_lambda=0.3", f"+reward.api_key={REDACTED}", *given[2:]]
    assert redact(given) == expected


def test_values_of_the_environment_go_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    given = {"data": {"path": PLANTED, "url": f"https://{PLANTED}@host/x"}, "tags": [PLANTED, "plain"]}
    redacted = redact(given)
    assert PLANTED not in str(redacted)
    assert redacted["data"]["path"] == REDACTED
    assert redacted["tags"] == [REDACTED, "plain"]


@pytest.mark.parametrize(
    "name",
    [
        *("MY_SERVICE_KEY", "X_SECRET", "DB_PASSWORD", "PGPASSWORD", "WANDB_API_KEY", "DB_PASS", "GITHUB_PAT", "AUTH"),
        *("SLACK_WEBHOOK", "SLACK_WEBHOOK_URL", "MY_API_KEY_PROD", "AWS_ACCESS_KEY_ID", "OPENAI_KEY_2", "NPM_AUTH"),
        *("SENTRY_DSN", "API_KEYS", "MYSQL_PWD", "BEARER", "SIGNING_KEY_PEM", "PRIVATE_TOKEN_FILE_V2"),
    ],
)
def test_every_kind_of_secret_variable_counts(monkeypatch, name):
    monkeypatch.setenv(name, PLANTED)
    assert redact(PLANTED) == REDACTED


def test_short_values_and_other_variables_are_ignored(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "reviews")  # 7 characters
    monkeypatch.setenv("SOME_FOLDER", PLANTED)
    assert redact({"path": "reviews", "name": PLANTED}) == {"path": "reviews", "name": PLANTED}


def test_a_word_of_8_characters_goes_only_where_it_is_the_whole_value(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "training")
    assert redact({"a": "training", "b": "training/data"}) == {"a": REDACTED, "b": "training/data"}


def test_passwords_in_urls_go():
    assert redact_text("http://me:hunter2@proxy:80/x") == f"http://me:{REDACTED}@proxy:80/x"
    assert redact_text("http://proxy:80/x?a=b@c") == "http://proxy:80/x?a=b@c"


def test_variables_that_only_sound_like_secrets_keep_their_values():
    innocent = ("PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "COMPASS_DIR", "KEYBOARD", "PATTERN", "AUTHOR", "PASSENGERS")
    assert environment_secrets(dict.fromkeys(innocent, PLANTED)) == ()


@pytest.mark.parametrize(
    "token",
    [
        "hf_AbCdEfGhIjKlMnOpQrStUvWx",
        "ghp_0123456789abcdefghijABCDEFGHIJ",
        "github_pat_11ABCDEFG0_abcdefghijklmnop",
        "glpat-AbCdEfGhIjKlMnOpQr",
        "xoxb-1234567890-abcdefghij",
        "sk-proj-AbCdEfGhIjKlMnOpQrSt",
        "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
    ],
    ids=lambda token: token[:4],
)
def test_well_known_tokens_go_whatever_they_are_called(token):
    assert redact_text(f"tag {token}, and on") == f"tag {REDACTED}, and on"


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("http://127.0.0.1:5000/score", "http://127.0.0.1:5000/score"),
        ("https://host/v1/rewards/", "https://host/v1/rewards/"),
        ("http://host", "http://host"),
        ("http://host:80/tok_4f7a/score", f"http://host:80/{REDACTED}"),
        ("https://hooks.host/services/T0/B0/XyZ", f"https://hooks.host/{REDACTED}"),
        ("http://me:pw@host/score?key=1", "http://host/score"),
        ("not an address", "not an address"),
    ],
)
def test_only_the_host_and_ordinary_paths_of_an_address_are_written(url, written):
    assert public_address(url) == written
    assert redact({"reward": {"components": {"a": {"url": url}}}})["reward"]["components"]["a"]["url"] == written
    assert redact([f"evaluation.judge.base_url={url}"]) == [f"evaluation.judge.base_url={written}"]


def test_control_characters_are_shown():
    text = "a\x1b[2Jb\x07\r\x9b31m\u202egpj.exe\tand\nä 👍\u200d"
    assert printable(text) == "a\\x1b[2Jb\\x07\\x0d\\x9b31m\\u202egpj.exe\tand\nä 👍\u200d"
