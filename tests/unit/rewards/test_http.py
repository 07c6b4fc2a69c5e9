"""A served reward against a real local server: what is sent, what is tried again, and one line for the rest."""

from __future__ import annotations

import math
import socket
import threading
import time

import pytest
from refused import refusal
from reward_server import Answer, lengths, scores, serving
from tiny_models import make_config

from apa_cli.config.schema import ScorerConfig
from apa_cli.rewards import json_server
from apa_cli.rewards.http import HttpReward, probe_served
from apa_cli.rewards.record import FinishedResponses


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Short waits, and no proxy of this machine's in between."""
    monkeypatch.setattr(json_server, "_FIRST_WAIT", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def reward(url, **settings):
    return HttpReward(
        ScorerConfig(kind="http", url=url, **{"retries": 2, "timeout_seconds": 20.0, **settings}), key="reward"
    )


def finished(count=5, **changes):
    fields = {
        "prompts": [f"p{row}" for row in range(count)],
        "responses": ["r" * row for row in range(count)],
        "messages": None,
        "columns": {},
        "token_ids": [[row] for row in range(count)],
        "ended": [row % 2 == 0 for row in range(count)],
        "closing": 99,
    }
    return FinishedResponses(**{**fields, **changes})


def failure(url, count=5, **settings):
    return refusal(reward(url, **settings), finished(count))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_batches_go_out_and_scores_come_back_in_order():
    def later_first(request):
        answer = lengths(request)
        answer.delay = 0.2 if "p0" in request["prompts"] else 0.0
        return answer

    with serving(later_first) as server:
        columns = {"answer": ["ä\ud800", math.nan, None, 2, {"x": (1,)}]}
        chats = [[{"role": "user", "content": f"p{row}"}] for row in range(5)]
        found = reward(server.url, batch_size=2)(finished(columns=columns, messages=chats))
    assert found == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert len(server.requests) == 3
    first = next(request for request in server.requests if "p0" in request["prompts"])
    assert first == {
        "prompts": ["p0", "p1"],
        "responses": ["", "r"],
        "query": ["p0\n\n", "p1\n\nr"],
        "messages": chats[:2],
        "token_ids": [[0, 99], [1]],
        "ended": [True, False],
        "columns": {"answer": ["ä\ud800", None]},
    }
    assert {"x": [1]} in [value for request in server.requests for value in request["columns"]["answer"]]
    assert server.headers[0]["Content-Type"] == "application/json"
    assert "Authorization" not in server.headers[0]


def test_openrlhfs_answer_is_understood_and_null_is_a_missing_score():
    with serving(lambda request: Answer(b'{"rewards": [1, null, NaN, true, 0.5]}')) as server:
        found = reward(server.url)(finished())
    assert [found[0], found[3], found[4]] == [1.0, 1.0, 0.5]
    assert math.isnan(found[1])
    assert math.isnan(found[2])
    assert str(reward(server.url).not_finite(1, found[1])) == (
        f"reward.url: {server.url} has no score for row 1 (nan); answer finite numbers"
    )


def failing_first(*failures):
    left = list(failures)
    return lambda request: left.pop(0) if left else lengths(request)


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(b"busy", status=503),
        Answer(b"slow down", status=429, headers={"Retry-After": "0"}),
        Answer(b"", drop=True),
        Answer(b'{"scores": [', headers={"Content-Length": "400"}),
    ],
    ids=["503", "429", "dropped", "cut in the middle"],
)
def test_what_may_pass_is_tried_again(trouble, caplog):
    with serving(failing_first(trouble, trouble)) as server:
        assert reward(server.url)(finished(2)) == [0.0, 1.0]
    assert len(server.requests) == 3
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith("; trying again, up to 2 times")


@pytest.mark.parametrize(
    ("answer", "said", "requests"),
    [
        (Answer(b"no such thing", status=503), "fails (503: no such thing), in 3 tries; start the server, ", 3),
        (Answer(b'{"detail": "what?"}', status=422), 'refuses the request (422: what?); correct the', 1),
        (Answer(b"", status=404), "refuses the request (404); correct the address", 1),
        (Answer(b"<html>hello</html>"), "does not answer with JSON: <html>hello</html>; answer {", 1),
        (Answer(b""), "does not answer with JSON: nothing; answer {", 1),
        (Answer(b'{"score": [1]}'), 'answers JSON without "scores": {"score": [1]}; answer {', 1),
        (Answer(b"[1, 2]"), 'answers JSON without "scores": [1, 2]; answer {', 1),
        (scores([1.0]), "returned 1 scores for 5 responses; return one number per response", 1),
        (scores([1, 2, 3, 4, "good"]), "returned 'good' for row 4; return finite numbers", 1),
        (scores([[1], [2], [3], [4], [5]]), "returned [1] for row 0; return finite numbers", 1),
        (scores("12345"), "returned str; return a list with one number per response", 1),
        (Answer(b"", status=302, headers={"Location": "/elsewhere"}), "redirects elsewhere (302: /elsewhere); give", 1),
    ],
)  # fmt: skip
def test_one_line(answer, said, requests):
    with serving(lambda request: answer) as server:
        line = failure(server.url)
    assert line.startswith(f"reward.url: {server.url} {said}")
    assert len(server.requests) == requests


@pytest.mark.parametrize(
    "endless", [scores([0.0] * 5, delay=5.0), Answer(b"", status=503, headers={"Retry-After": "9"})]
)
def test_the_timeout_holds_for_all_tries(endless):
    with serving(lambda request: endless) as server:
        began = time.monotonic()
        line = failure(server.url, timeout_seconds=0.5)
    assert time.monotonic() - began < 4
    if endless.status == 200:
        assert line.startswith(
            f"reward.timeout_seconds: {server.url} has not answered within 0.5 s, in 1 try; see whether the"
        )


def test_an_answer_that_drips_is_too_slow():
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                time.sleep(0.1)
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    threading.Thread(target=drip, daemon=True).start()
    with listener:
        began = time.monotonic()
        line = failure(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout_seconds=0.5)
    assert line.startswith("reward.timeout_seconds: ")
    assert time.monotonic() - began < 4


def test_the_token_is_sent_and_never_said(monkeypatch):
    token = "tok-0123456789abcdef"
    with serving(lengths) as server:
        line = failure(server.url, api_key_env="REWARD_TOKEN")
        assert line == (
            "reward.api_key_env: REWARD_TOKEN is not set; export REWARD_TOKEN=TOKEN, or set reward.api_key_env=null"
        )
        monkeypatch.setenv("REWARD_TOKEN", token)
        reward(server.url, api_key_env="REWARD_TOKEN")(finished(1))
    assert server.headers[0]["Authorization"] == f"Bearer {token}"
    for status in (401, 422, 503):
        echo = Answer(f"{token} is no good".encode(), status=status)
        with serving(lambda request, echo=echo: echo) as server:
            line = failure(server.url, api_key_env="REWARD_TOKEN")
        assert token not in line
    with serving(lambda request: Answer(b"", status=401)) as server:
        assert failure(server.url).startswith(
            f"reward.api_key_env: {server.url} requires a token (401); name the variable"
        )


def test_a_redirect_does_not_carry_the_token_on(monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "tok-0123456789abcdef")
    with serving(lengths) as other:
        moved = Answer(b"", status=307, headers={"Location": other.url})
        with serving(lambda request: moved) as server:
            failure(server.url, api_key_env="REWARD_TOKEN")
    assert other.requests == []


def test_the_probe_asks_for_one_score():
    with serving(lengths) as server:
        probe_served(make_config("p", reward__kind="http", reward__function=None, reward__url=server.url))
    (request,) = server.requests
    assert (len(request["prompts"]), len(request["responses"]), request["columns"]) == (1, 1, {})


def test_a_failure_stops_the_other_batches():
    def first_fails(request):
        return Answer(b"", status=404) if "p0" in request["prompts"] else scores([1.0], delay=0.1)

    with serving(first_fails) as server:
        failure(server.url, count=40, batch_size=1, concurrency=2)
        time.sleep(0.3)
        assert len(server.requests) < 10
