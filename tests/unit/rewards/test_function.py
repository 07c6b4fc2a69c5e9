"""A reward function that raises, hangs or answers nonsense ends in one line, with the user's own traceback."""

import contextvars
import math
import signal
import sys
import threading
import time
import traceback

import pytest
import torch

from apa_cli.errors import UserError
from apa_cli.rewards import function as reward_function
from apa_cli.rewards.function import RewardFunction, load_function
from apa_cli.rewards.record import FinishedResponses
from apa_cli.watched_thread import any_abandoned

ROWS = FinishedResponses(
    prompts=["a", "b"], responses=["c", "d"], messages=None, columns={"gold": [1, 2]}, token_ids=[[1], [2]]
)


def scorer(function, timeout=20.0, key="reward.function"):
    return RewardFunction(function, "mine:f", key=key, timeout=timeout)


def failure(function, timeout=20.0, **settings):
    with pytest.raises(UserError) as caught:
        scorer(function, timeout, **settings)(ROWS)
    assert "\n" not in str(caught.value)
    return caught.value


def functions_of(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize("good", [[1, None], torch.tensor([1.0, torch.nan]), {"rewards": (True, float("nan"))}])
def test_numbers_of_any_kind_are_taken_and_none_is_no_score(good):
    first, second = scorer(lambda prompts, responses: good)(ROWS)
    assert (first, math.isnan(second)) == (1.0, True)


def test_what_float32_cannot_hold_is_no_score():
    assert scorer(lambda prompts, responses: [1e39, torch.tensor([-1e39])])(ROWS) == [math.inf, -math.inf]
    assert "a whole number beyond every float for row 1" in str(failure(lambda prompts, responses: [0, 10**5000]))


@pytest.mark.parametrize("timeout", [None, 20.0])
def test_only_the_users_frames_are_in_the_traceback(timeout):
    def inner():
        raise KeyError("no such word")

    def outer(prompts, responses):
        return inner()

    error = failure(outer, timeout)
    assert str(error).startswith("reward.function: mine:f raised KeyError: 'no such word'; ")
    assert functions_of(error.__cause__) == ["outer", "inner"]


def test_a_hanging_function_is_given_up_and_shown_where_it_hangs():
    gate, hanging = threading.Event(), []

    def ask_server():
        hanging.append(threading.current_thread())
        gate.wait()

    def hang(prompts, responses):
        return ask_server()

    began = time.monotonic()
    error = failure(hang, 0.2, key="evaluation.reward.function")
    assert time.monotonic() - began < 5
    assert str(error).startswith("evaluation.reward.function: mine:f has not returned after 0.2 s; ")
    assert "evaluation.reward.timeout_seconds" in str(error)
    assert functions_of(error.__cause__)[:3] == ["hang", "ask_server", "wait"]
    assert any_abandoned()
    gate.set()
    hanging[0].join(10)
    assert not hanging[0].is_alive()  # any_abandoned() would speak of other tests' threads too


def test_after_a_hang_the_next_call_works_and_late_answers_are_lost():
    gate = threading.Event()
    answers = iter([[1.0, 1.0], [2.0, 2.0]])

    def first_slow(prompts, responses):
        answer = next(answers)
        if answer[0] == 1.0:
            gate.wait()
        return answer

    reward = scorer(first_slow, 0.5)
    with pytest.raises(UserError):
        reward(ROWS)
    gate.set()
    assert reward(ROWS) == [2.0, 2.0]


def test_the_thread_is_as_a_direct_call():
    """Gradients, random numbers and context variables."""
    note = contextvars.ContextVar("note", default="")
    note.set("here")
    seen = []

    def look(prompts, responses):
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), note.get()))
        return torch.rand(2).tolist()

    def both(timeout):
        seen.clear()
        torch.manual_seed(7)
        scores = [scorer(look, timeout)(ROWS)]
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                scores.append(scorer(look, timeout)(ROWS))
        return scores, list(seen), torch.rand(1).item()

    assert both(20.0) == (direct := both(None))
    assert [row[:2] for row in direct[1]] == [(True, False), (False, False), (False, True)]


def test_what_a_function_keeps_by_thread_stays():
    kept = threading.local()

    def count(prompts, responses):
        kept.calls = getattr(kept, "calls", 0) + 1
        return [kept.calls] * 2

    reward = scorer(count)
    assert [reward(ROWS)[0] for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_function_that_needs_the_main_thread_is_told_how():
    def alarm(prompts, responses):
        signal.signal(signal.SIGALRM, signal.signal(signal.SIGALRM, signal.SIG_IGN))
        return [1, 2]

    assert "set reward.timeout_seconds=null" in str(failure(alarm))
    assert scorer(alarm, None)(ROWS) == [1.0, 2.0]


POOLED = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from beside import weight


def one(response):
    return weight() * len(response)


def reward(prompts, responses):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return list(pool.map(one, responses))
"""


@pytest.fixture
def path_as_it_was(monkeypatch):
    """A process starts without reward files."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(reward_function, "_FOLDERS", [])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in ("pooled", "beside", "math", "apa_reward_math", "one", "two"):
            del sys.modules[name]


def test_what_lies_beside_the_file_is_imported_and_a_spawned_pool_finds_its_functions(tmp_path, path_as_it_was):
    (tmp_path / "beside.py").write_text("def weight():\n    return 0.5\n")
    (tmp_path / "pooled.py").write_text(POOLED)
    function = load_function(f"{tmp_path}/pooled.py:reward", "k")
    assert function(["p"], ["abcd", "ab"]) == [2.0, 1.0]


def test_nothing_of_ours_or_of_python_is_hidden(tmp_path, path_as_it_was):
    (tmp_path / "math.py").write_text("import json, random, torch\ndef f(responses):\n    return json.__file__\n")
    for name in ("json", "random", "torch", "apa_cli"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError\n")
    function = load_function(f"{tmp_path}/math.py:f", "k")
    assert not function([]).startswith(str(tmp_path))
    assert sys.modules["math"].sqrt(4) == 2
    assert sys.path[-1] == str(tmp_path)


def test_each_file_has_its_own_neighbours_and_a_file_is_run_anew_for_each_run(tmp_path, path_as_it_was):
    for folder, number in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "beside.py").write_text(f"NUMBER = {number}\n")
        (tmp_path / folder / "one.py").write_text("import beside\ncalls = []\ndef f(responses):\n"
                                                  "    calls.append(0)\n    return [beside.NUMBER, len(calls)]\n"
                                                  "def g(responses):\n    return len(calls)\n")  # fmt: skip
    a, b = (load_function(f"{tmp_path}/{folder}/one.py:f", "k") for folder in "ab")
    assert [a([]), b([]), a([])] == [[1, 1], [2, 1], [1, 2]]
    assert load_function(f"{tmp_path}/a/one.py:f", "k")([]) == [1, 1]
    modules = {}
    f, g = (load_function(f"{tmp_path}/a/one.py:{name}", "k", modules) for name in "fg")
    assert (f([]), g([])) == ([1, 1], 1)
    assert sys.path.count(f"{tmp_path}/a") == 1
