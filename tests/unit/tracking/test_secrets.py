import dataclasses

import pytest

from apa_cli.config.schema import TrainConfig
from apa_cli.tracking.secrets import REDACTED, is_secret_name, redact, redact_text

PLANTED = "hf_planted-0123456789"


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hf_token",
        "HF_TOKEN",
        "api_key",
        "apiKey",
        "reward.api_key",
        "client_secret",
        "db_password",
        "accessToken",
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


@pytest.mark.parametrize("name", ["MY_SERVICE_KEY", "X_SECRET", "DB_PASSWORD", "PGPASSWORD", "WANDB_API_KEY"])
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
