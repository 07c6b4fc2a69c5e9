"""What a reward function's parameters are given: by name, in any order."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from refused import refusal

from apa_cli.rewards.arguments import Arguments
from apa_cli.rewards.function import RewardFunction
from apa_cli.rewards.record import FinishedResponses

FINISHED = FinishedResponses(
    prompts=["p1", "p2"],
    responses=["r1", "r2"],
    messages=None,
    columns={"answer": [4, 5], "label": ["x", "y"]},
    token_ids=[[1, 2], [1, 3]],
    response_ids=[[2, 9], [3, 9]],
    raw=lambda: (["<s>p1<think>", "<s>p2<think>"], ["r1</s>", "r2</s>"]),
)
P, R = FINISHED.prompts, FINISHED.responses
RAW_P, RAW_R = FINISHED.raw()
ANSWER, LABEL, IDS = [4, 5], ["x", "y"], [[2, 9], [3, 9]]
COLUMNS = {"answer": ANSWER, "label": LABEL}


class Judge:
    def __call__(self, responses, prompts):
        return locals()

    def method(self, completions, prompts):
        return locals()


def wrapped(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


def bare(function):
    return lambda *args, **kwargs: function(*args, **kwargs)


# functions return their locals(): what each parameter was given
CASES = {
    "ours": (lambda prompts, responses, **columns: locals(), {"prompts": P, "responses": R, "columns": COLUMNS}),
    "the other way round": (lambda responses, prompts: locals(), {"prompts": P, "responses": R}),
    "the other way round, with columns": (
        lambda responses, prompts, **columns: locals(), {"prompts": P, "responses": R, "columns": COLUMNS}),
    "a column": (lambda prompts, responses, answer: locals(), {"prompts": P, "responses": R, "answer": ANSWER}),
    "a column first": (lambda answer, responses: locals(), {"answer": ANSWER, "responses": R}),
    "TRL": (
        lambda completions, prompts, **kwargs: locals(),
        {"completions": R, "prompts": P, "kwargs": {**COLUMNS, "completion_ids": IDS}}),
    "TRL, all named": (
        lambda prompts, completions, completion_ids, answer, **kwargs: locals(),
        {"prompts": P, "completions": R, "completion_ids": IDS, "answer": ANSWER, "kwargs": {"label": LABEL}}),
    "TRL, completions alone": (
        lambda completions, **kwargs: locals(),
        {"completions": R, "kwargs": {**COLUMNS, "prompts": P, "completion_ids": IDS}}),
    "OpenRLHF": (
        lambda queries, prompts, labels: locals(), {"queries": ["p1r1", "p2r2"], "prompts": P, "labels": LABEL}),
    "responses alone": (lambda responses: locals(), {"responses": R}),
    "raw": (
        lambda raw_responses, raw_prompts, **kwargs: locals(),
        {"raw_responses": RAW_R, "raw_prompts": RAW_P, "kwargs": {**COLUMNS, "prompts": P}}),
    "keyword-only": (
        lambda *, responses, prompts, answer=None: locals(), {"responses": R, "prompts": P, "answer": ANSWER}),
    "positional-only": (lambda responses, prompts, /: locals(), {"responses": R, "prompts": P}),
    "positional-only, a default between": (
        lambda responses, scale=2, prompts=None, /: locals(), {"responses": R, "scale": 2, "prompts": P}),
    "defaults": (
        lambda prompts, responses, scale=2, labels=None: locals(),
        {"prompts": P, "responses": R, "scale": 2, "labels": LABEL}),
    "keywords alone": (lambda **kwargs: kwargs, {**COLUMNS, "prompts": P, "responses": R}),
    "an instance": (Judge(), {"responses": R, "prompts": P}),
    "a bound method": (Judge().method, {"completions": R, "prompts": P}),
    "a partial": (
        functools.partial(lambda scale, responses, prompts: locals(), 3), {"scale": 3, "responses": R, "prompts": P}),
    "decorated": (wrapped(lambda responses, prompts: locals()), {"responses": R, "prompts": P}),
    "decorated without wraps": (
        bare(lambda responses, prompts, **c: locals()), {"responses": R, "prompts": P, "c": COLUMNS}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_given_what_its_name_says(name):
    function, expected = CASES[name]
    arguments = Arguments(function, "mine:f", "reward.function")
    values, keywords = arguments.of(FINISHED)
    given = function(*values, **keywords)
    assert {key: value for key, value in given.items() if key != "self"} == expected
    arguments.check_columns(list(FINISHED.columns))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: 0, "does not take prompts and responses; define it as reward(prompts, responses, **columns)"),
        (lambda texts: 0, "does not take prompts and responses"),
        (lambda *args: 0, "does not take prompts and responses"),
        (lambda texts, **columns: 0, "does not take prompts and responses"),
        (lambda x, responses: 0, "needs x"),
        (print, "does not take prompts and responses"),
        (dict, "does not take prompts and responses"),
    ],
)  # fmt: skip
def test_what_cannot_be_bound_is_refused_before_it_is_called(function, words):
    line = refusal(lambda: Arguments(function, "mine:f", "reward.function").check_columns(["answer"]))
    assert line.startswith("reward.function: mine:f ")
    assert words in line


def test_a_column_of_a_known_name_comes_before_ours():
    data = replace(FINISHED, columns={"labels": [1, 2], "completions": ["c1", "c2"], "raw_prompts": ["q1", "q2"]})
    arguments = Arguments(lambda prompts, responses, completions, labels, raw_prompts: 0, "mine:f", "k")
    assert arguments.of(data)[1] == {**data.columns, "prompts": P, "responses": R}
    assert Arguments(lambda completions: 0, "mine:f", "k").of(data)[1] == {"completions": R}


def test_the_lists_are_copies():
    def spoils(prompts, responses, answer):
        for given in (prompts, responses, answer):
            given.clear()
        return [0.0, 0.0]

    assert RewardFunction(spoils, "mine:f", key="k")(FINISHED) == [0.0, 0.0]
    assert (P, R, ANSWER) == (["p1", "p2"], ["r1", "r2"], [4, 5])
