"""The judge against a real HTTP server on this machine that imitates /v1/chat/completions."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import traceback
from types import SimpleNamespace

import pytest
from refused import refusal
from reward_server import Answer, serving

from apa_cli.config.schema import JudgeConfig
from apa_cli.errors import UserError
from apa_cli.evaluation.endpoint import EndpointJudge, check_judge
from apa_cli.evaluation.pairwise import Pair

KEY = "sk-planted-5f0e2c9d1b7a4438"
USAGE = {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40}


class Endpoint:
    """Set `answer(request, number)` to what the n-th request (from 0) gets: text, or (status, body)."""

    def __init__(self, served):
        self.served, self.requests, self.headers = served, served.requests, served.headers
        self.url = served.url.replace("/score", "/v1")
        self.usage = USAGE
        self.answer = judge_by_quality
        self.released = threading.Event()

    def completion(self, text):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return body if self.usage is None else {**body, "usage": self.usage}

    def reply(self, request):
        answer = self.answer(request, next(i for i, asked in enumerate(self.requests) if asked is request))
        status, body = (200, self.completion(answer)) if isinstance(answer, str) else answer
        return Answer(body if isinstance(body, bytes) else json.dumps(body).encode(), status=status)


def shown(request):
    """The two responses as the judge sees them."""
    return re.findall(r"<<<RESPONSE [AB] \w+>>>\n(.*?)\n<<<END", request["messages"][1]["content"], re.DOTALL)


def judge_by_quality(request, number):
    a, b = shown(request)
    if ("good" in a) == ("good" in b):
        return "tie"
    return "A" if "good" in a else "B"


def stuck(endpoint):
    """Answers only when the test is over."""
    return lambda request, number: "A" if endpoint.released.wait(10) else "B"


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda request: server.reply(request)) as served:
        server = Endpoint(served)
        yield server
        server.released.set()


def config_for(endpoint, **settings):
    settings = {"model": "m", "retries": 0, "concurrency": 1, "timeout_seconds": 5.0, **settings}
    return JudgeConfig(base_url=endpoint if isinstance(endpoint, str) else endpoint.url, **settings)


def ask(endpoint, pairs, **settings):
    verdicts, account = EndpointJudge(config_for(endpoint, **settings)).judge(pairs)
    return verdicts, SimpleNamespace(**json.loads(json.dumps(account)))


def pairs_of(*qualities):
    """("good", "bad") is a pair that the checkpoint wins."""
    return [
        Pair(prompt=f"prompt {i}", checkpoint=f"{c} trained {i}", initial=f"{s} start {i}")
        for i, (c, s) in enumerate(qualities)
    ]


WIN, LOSE, TIE = ("good", "bad"), ("bad", "good"), ("good", "good")


def test_win_tie_lose_in_both_orders(endpoint):
    verdicts, summary = ask(endpoint, pairs_of(WIN, LOSE, TIE, WIN))
    assert [v.outcome for v in verdicts] == [1, -1, 0, 1]
    assert [shown(r) for r in endpoint.requests[:2]] == [
        ["good trained 0", "bad start 0"],
        ["bad start 0", "good trained 0"],
    ]
    assert (summary.wins, summary.ties, summary.losses, summary.win_rate) == (2, 1, 1, 2.5 / 4)
    assert (summary.judged, summary.pairs, summary.requests) == (4, 4, 8)
    assert (summary.input_tokens, summary.output_tokens, summary.cost) == (240, 80, None)
    assert (summary.inconsistent, summary.unparsed, summary.stopped) == (0, 0, None)


def test_a_judge_that_likes_the_first_has_no_opinion(endpoint):
    endpoint.answer = lambda request, number: "A"
    verdicts, summary = ask(endpoint, pairs_of(WIN, LOSE, TIE))
    assert [v.outcome for v in verdicts] == [0] * 3
    assert (summary.inconsistent, summary.inconsistency_rate, summary.win_rate) == (3, 1.0, 0.5)


def test_identical_responses_are_a_tie_and_cost_nothing(endpoint):
    same = Pair(prompt="p", checkpoint="same", initial="same")
    verdicts, summary = ask(endpoint, [same, *pairs_of(WIN)])
    assert [v.outcome for v in verdicts] == [0, 1]
    assert (len(endpoint.requests), summary.identical, summary.inconsistency_rate) == (2, 1, 0.0)
    assert ask(endpoint, [])[1].win_rate is None


def test_what_is_sent(endpoint):
    ask(endpoint, pairs_of(WIN), criterion="Prefer the kinder one.", seed=0, max_answer_tokens=7)
    ask(endpoint, pairs_of(WIN), temperature=None, seed=None, max_answer_tokens=None)
    first, last = endpoint.requests[0], endpoint.requests[-1]
    assert set(first) == {"model", "messages", "temperature", "seed", "max_completion_tokens"}
    assert (first["model"], first["temperature"], first["seed"], first["max_completion_tokens"]) == ("m", 0, 0, 7)
    assert "Prefer the kinder one." in first["messages"][0]["content"]
    assert set(last) == {"model", "messages"}
    assert "Authorization" not in endpoint.headers[0]
    codes = [re.search(r"<<<PROMPT (\w+)>>>", r["messages"][1]["content"])[1] for r in endpoint.requests]
    assert codes[0] == codes[1] != codes[2]  # one a run
    assert len(codes[0]) >= 16


def test_only_the_first_prompts(endpoint):
    _, summary = ask(endpoint, pairs_of(WIN, WIN, LOSE), prompts=2)
    assert (summary.pairs, summary.judged, summary.stopped) == (2, 2, None)


def test_an_unreadable_answer_is_asked_once_more(endpoint):
    endpoint.answer = lambda request, number: "hmm" if number == 0 else judge_by_quality(request, number)
    verdicts, summary = ask(endpoint, pairs_of(WIN))
    assert (verdicts[0].outcome, summary.unparsed, summary.requests) == (1, 0, 3)
    assert "exactly one word and nothing else" in endpoint.requests[1]["messages"][1]["content"]


def test_then_it_is_a_tie_and_counted(endpoint):
    endpoint.answer = lambda request, number: "hmm" if number < 2 else judge_by_quality(request, number)
    verdicts, summary = ask(endpoint, pairs_of(WIN))
    assert (verdicts[0].outcome, verdicts[0].preferred) == (0, ("unparsed", "checkpoint"))
    assert (summary.unparsed, summary.inconsistent, summary.requests) == (1, 0, 3)


@pytest.mark.parametrize("choices", [[], [{}], [{"message": {"role": "assistant", "content": None}}]])
def test_no_choice_or_no_text_is_an_unreadable_answer(endpoint, choices):
    endpoint.answer = lambda request, number: (200, {**endpoint.completion(""), "choices": choices})
    verdicts, summary = ask(endpoint, pairs_of(WIN))
    assert (verdicts[0].outcome, summary.unparsed, summary.requests) == (0, 2, 4)


BROKEN = [b'{"choices": [', b"\xff\xfe", b"", b"[1]", b'{"error": {"message": "no"}}']


@pytest.mark.parametrize("body", BROKEN)
def test_a_body_that_is_no_completion(endpoint, body):
    endpoint.answer = lambda request, number: (200, body)
    line = refusal(EndpointJudge(config_for(endpoint)).judge, pairs_of(WIN))
    assert line.startswith("evaluation.judge.base_url: ") and "does not answer with" in line
    assert len(endpoint.requests) == 1


def test_a_slow_server(endpoint):
    endpoint.answer = stuck(endpoint)
    started = time.monotonic()
    line = refusal(EndpointJudge(config_for(endpoint, timeout_seconds=0.2, retries=1)).judge, pairs_of(WIN))
    assert time.monotonic() - started < 3
    assert len(endpoint.requests) == 2
    assert (
        line.startswith("evaluation.judge.timeout_seconds: ")
        and "within 0.2 s, in 2 tries; see whether the server is stuck, lower evaluation.judge.concurrency" in line
    )


@pytest.mark.parametrize(
    ("status", "key", "where", "says"),
    [
        (401, "", "api_key_env", "ADDRESS requires a token (401); export OPENAI_API_KEY"),
        (401, KEY, "api_key_env", "OPENAI_API_KEY holds a token that ADDRESS refuses (401); export OPENAI_API_KEY"),
        (403, KEY, "api_key_env", "OPENAI_API_KEY holds a token that ADDRESS refuses (403: no); export"),
        (404, KEY, "model", "ADDRESS refuses the request (404: no): it does not know m, or this address; correct"),
        (429, KEY, "concurrency", "ADDRESS fails (429: no), in 1 try; lower it, raise evaluation.judge.retries"),
        (503, KEY, "base_url", "ADDRESS fails (503: no), in 1 try; start the server"),
        (422, KEY, "base_url", "ADDRESS refuses the request (422: no); correct"),
        (307, KEY, "base_url", "ADDRESS redirects elsewhere (307); give that address"),
    ],
)
def test_a_refusal(endpoint, monkeypatch, status, key, where, says):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    endpoint.answer = lambda request, number: (status, {"error": {"message": "no"}})
    line = refusal(EndpointJudge(config_for(endpoint)).judge, pairs_of(WIN))
    assert line.startswith(f"evaluation.judge.{where}: {says}".replace("ADDRESS", f"{endpoint.url}/chat/completions"))
    assert len(endpoint.requests) == 1


def test_token_cap(endpoint):
    _, summary = ask(endpoint, pairs_of(*[WIN] * 5), max_tokens_total=175)  # four requests of 40, not five
    assert (len(endpoint.requests), summary.judged, summary.pairs, summary.win_rate) == (4, 2, 5, 1.0)
    assert summary.stopped == "evaluation.judge.max_tokens_total=175 is used up: 160 spent"


def test_money_cap_with_many_at_a_time(endpoint):
    prices = {"price_per_million_input": 1_000.0, "price_per_million_output": 10_000.0}  # 0.03 + 0.10 a request
    _, summary = ask(endpoint, pairs_of(*[WIN] * 30), max_cost=1.0, concurrency=8, **prices)
    assert len(endpoint.requests) == 7
    assert summary.cost == pytest.approx(0.91)
    assert summary.stopped.startswith("evaluation.judge.max_cost=1 is used up")


def test_the_first_request_goes_alone_while_nothing_is_known_of_its_size(endpoint):
    endpoint.answer = lambda request, number: time.sleep(0.2) or "tie"
    verdicts, summary = ask(endpoint, pairs_of(*[WIN] * 8), max_tokens_total=50, concurrency=8)
    assert (verdicts, len(endpoint.requests), summary.input_tokens + summary.output_tokens) == ([], 1, 40)


def test_the_cap_spans_calls_and_the_account_is_of_the_last(endpoint):
    prices = {"price_per_million_input": 1_000.0, "price_per_million_output": 10_000.0}
    judge = EndpointJudge(config_for(endpoint, max_tokens_total=180, **prices))
    names = ("judged", "requests", "input_tokens", "output_tokens")
    for _ in range(2):
        account = judge.judge(pairs_of(WIN))[1]
        assert [account[name] for name in names] == [1, 2, 60, 20]
        assert account["cost"] == pytest.approx(0.26)
        assert account["stopped"] is None
    account = judge.judge(pairs_of(WIN))[1]
    assert [account[name] for name in names] == [0, 0, 0, 0]
    assert (account["win_rate"], account["stopped"] is not None, len(endpoint.requests)) == (None, True, 4)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many", "completion_tokens": 1}])
def test_usage_missing(endpoint, usage):
    endpoint.usage = usage
    verdicts, summary = ask(endpoint, pairs_of(WIN))
    assert (verdicts[0].outcome, summary.requests_without_usage, summary.input_tokens) == (1, 2, 0)
    verdicts, summary = ask(endpoint, pairs_of(WIN), max_tokens_total=1000)
    assert (verdicts, len(endpoint.requests)) == ([], 3)
    assert summary.stopped.startswith("the server reports no usage")


def test_many_at_a_time_give_the_same_result_in_order(endpoint):
    waiting = threading.Barrier(4)

    def answer(request, number):
        if number < 4:
            waiting.wait(5)  # only passes if four are asked at the same time
        time.sleep(0.02 if number % 3 else 0.06)
        return judge_by_quality(request, number)

    qualities = [WIN, LOSE, TIE, WIN, LOSE] * 4
    endpoint.answer = answer
    seen = []
    judge = EndpointJudge(config_for(endpoint, concurrency=4))
    verdicts, _ = judge.judge(pairs_of(*qualities), lambda done, total: seen.append((done, total)))
    assert [v.outcome for v in verdicts] == [1, -1, 0, 1, -1] * 4
    assert seen == [(n, 20) for n in range(1, 21)]


def echo(status):
    """A server that repeats the key wherever it can."""

    def answer(request, number):
        said = f"bad key {KEY}, Bearer {KEY}"
        return status, {"error": {"message": said, "type": KEY, "code": KEY}}

    return answer


def chain(error):
    """Everything an error drags along, as text."""
    seen, texts = [error], []
    for link in seen:
        texts += [str(link), repr(link), repr(vars(link)), "".join(traceback.format_exception(link))]
        seen += [e for e in (link.__cause__, link.__context__) if e is not None and e not in seen]
    return texts


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
def test_the_key_reaches_the_server_and_nothing_else(endpoint, monkeypatch, caplog, capfd, status):
    monkeypatch.setenv("JUDGE_TOKEN_OF_MINE", f"{KEY}\n")
    caplog.set_level(logging.DEBUG)
    config = config_for(endpoint, api_key_env="JUDGE_TOKEN_OF_MINE")
    judge = EndpointJudge(config)
    error = answers = None
    if status == 200:
        endpoint.answer = lambda request, number: KEY if number < 2 else judge_by_quality(request, number)
        answers = judge.judge(pairs_of(WIN))
    else:
        endpoint.answer = echo(status)
        with pytest.raises(UserError) as caught:
            judge.judge(pairs_of(WIN))
        error = caught.value
        assert error.__cause__ is None and error.__context__ is None
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(endpoint.requests)
    left = [repr(config), repr(vars(judge)), repr(answers), caplog.text, *capfd.readouterr()]
    for text in left + (chain(error) if error else []):
        assert KEY not in text
    assert not any(KEY in str(record.args) for record in caplog.records)


def test_a_key_that_no_header_can_carry(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}é")
    with pytest.raises(UserError) as caught:
        EndpointJudge(config_for(endpoint)).judge(pairs_of(WIN))
    assert str(caught.value).startswith("evaluation.judge.api_key_env: the key in OPENAI_API_KEY has characters")
    assert not any(KEY in text for text in chain(caught.value))


URL = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"model": "m"}, "base_url"),
        ({"base_url": URL}, "model"),
        ({"base_url": "127.0.0.1:8000", "model": "m"}, "base_url"),
        ({"base_url": "ftp://host/v1", "model": "m"}, "base_url"),
        ({"base_url": "http://host:99999/v1", "model": "m"}, "base_url"),
        ({"base_url": "http://ho st/v1", "model": "m"}, "base_url"),
        ({"base_url": f"http://me:{KEY}@host/v1", "model": "m"}, "base_url"),
        ({"base_url": f"http://host/v1?key={KEY}", "model": "m"}, "base_url"),
        ({"base_url": f"{URL}/chat/completions", "model": "m"}, "base_url"),
        ({"base_url": URL, "model": "m", "api_key_env": KEY}, "api_key_env"),
        ({"base_url": URL, "model": "m", "max_cost": 1.0}, "price_per_million_input"),
        ({"base_url": URL, "model": "m", "price_per_million_input": 1.0}, "price_per_million_output"),
    ],
)
def test_settings_that_cannot_work(settings, key):
    with pytest.raises(UserError) as caught:
        check_judge(JudgeConfig(**settings))
    assert caught.value.where == f"evaluation.judge.{key}"
    assert KEY not in str(caught.value)
