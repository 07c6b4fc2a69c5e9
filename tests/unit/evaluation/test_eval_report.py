"""The files of an evaluation: numbers as they were measured, in formats that others can read."""

import dataclasses
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from apa_cli.evaluation.bootstrap import Estimate
from apa_cli.evaluation.eval_report import (
    PICTURE,
    as_json,
    chosen,
    curve,
    judge_line,
    rows,
    samples_page,
    with_interval,
    write_evaluation,
)
from apa_cli.evaluation.evaluate_checkpoints import EvaluatedPolicy, Evaluation
from apa_cli.evaluation.respond import JudgedResponse

ACCOUNT = {
    "model": "m", "judged": 3, "pairs": 4, "wins": 2, "ties": 1, "losses": 0, "inconsistent": 1, "unparsed": 0,
    "stopped": "cost cap reached",
}  # fmt: skip


def response(text="fine", score=1.0, **changes):
    fields = {
        "prompt": "a prompt", "response": text, "token_ids": (1,), "ended": True, "score": score, "evaluator": None,
        "kl": 0.1, "kl_k3": 0.2, "kl_exact": 0.3, "entropy": 0.4,
    }  # fmt: skip
    return JudgedResponse(**{**fields, **changes})


def estimate(value, width=0.5):
    return Estimate(value=value, low=value - width, high=value + width)


def policy(name, iteration, *, run="run", responses=None, **figures):
    return EvaluatedPolicy(
        name=name,
        iteration=iteration,
        path=f"{run}/{name}",
        run_dir=None if name == "initial" else Path(run),
        figures={key: estimate(value) for key, value in figures.items()},
        responses=responses or [response("after", 2.0)],
    )


def evaluation(*policies, opponents=None):
    return Evaluation(
        policies=[policy("initial", 0, reward=1.0, kl_exact=0.0, entropy=2.0), *policies],
        opponents=opponents or [response("before", 1.0)],
        prompts="1 prompt from mine.jsonl",
        rows=["mine.jsonl, line 4"],
        reference=None,
        decoding="sampled",
        seed=3,
        seconds=1.26,
    )


def strict_json(text):
    """NaN and Infinity are Python's, not JSON's."""

    def refuse(name):
        raise AssertionError(f"{name} in JSON")

    return json.loads(text, parse_constant=refuse)


def test_eval_json(tmp_path):
    account = {**ACCOUNT, "input_tokens": 7}
    one = dataclasses.replace(policy("final", 4, reward=2.0, win_rate=0.75), judge=account)
    write_evaluation(evaluation(one), tmp_path / "new" / "folder")
    found = strict_json((tmp_path / "new" / "folder" / "eval.json").read_text(encoding="utf-8"))
    assert {key: found[key] for key in ("prompts", "decoding", "seed", "seconds")} == {
        "prompts": "1 prompt from mine.jsonl",
        "decoding": "sampled",
        "seed": 3,
        "seconds": 1.3,
    }
    initial, final = found["policies"]
    assert (initial["name"], initial["iteration"]) == ("initial", 0)
    assert initial["figures"]["entropy"] == {"value": 2.0, "low": 1.5, "high": 2.5}
    assert "judge" not in initial
    assert final == {
        "name": "final",
        "iteration": 4,
        "path": "run/final",
        "figures": {
            "reward": {"value": 2.0, "low": 1.5, "high": 2.5},
            "win_rate": {"value": 0.75, "low": 0.25, "high": 1.25},
        },
        "judge": account,
    }


def test_what_json_cannot_hold_becomes_null(tmp_path):
    broken = policy("final", 4, kl_exact=math.inf, responses=[response(kl_exact=math.inf, score=math.nan)])
    write_evaluation(evaluation(broken), tmp_path)
    figures = strict_json((tmp_path / "eval.json").read_text(encoding="utf-8"))["policies"][1]["figures"]
    assert figures["kl_exact"] == {"value": None, "low": None, "high": None}
    row = strict_json((tmp_path / "samples.jsonl").read_text(encoding="utf-8"))
    assert (row["kl"], row["score_after"]) == (None, None)


def test_the_table(tmp_path):
    write_evaluation(evaluation(policy("final", 4, reward=2.3456, win_rate=0.75)), tmp_path)
    lines = (tmp_path / "eval.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table == [
        "|  | initial | final |",
        "|---|---:|---:|",
        "| training reward | 1.000 [0.500, 1.500] | 2.346 [1.846, 2.846] |",
        "| KL to the initial policy, exact, nats a response | 0.000 [-0.500, 0.500] | – |",
        "| entropy, nats a token | 2.000 [1.500, 2.500] | – |",
        "| wins against the initial policy, training reward, fraction | – | 0.750 [0.250, 1.250] |",
    ]
    assert any("1 prompt from mine.jsonl; sampled responses, seed 3" in line for line in lines)


def test_a_bar_in_a_name_does_not_break_the_table(tmp_path):
    write_evaluation(evaluation(policy("a|b", 4, reward=2.0)), tmp_path)
    assert "|  | initial | a\\|b |" in (tmp_path / "eval.md").read_text(encoding="utf-8")


def test_no_minus_before_a_rounded_zero():
    assert with_interval(Estimate(value=-1e-9, low=-4e-4, high=-6e-4), 3) == "0.000 [0.000, -0.001]"


def test_only_measured_figures_have_a_row():
    header, table = rows(evaluation(policy("final", 4, reward=2.0)))
    assert header == ["", "initial", "final"]
    assert [row[0] for row in table] == [
        "training reward",
        "KL to the initial policy, exact, nats a response",
        "entropy, nats a token",
    ]


def test_samples_are_pairs_for_every_checkpoint(tmp_path):
    one = policy("one", 2, responses=[response("x1", 5.0, evaluator=0.5), response("x2", 6.0, evaluator=0.6)])
    two = policy("two", 4, responses=[response("y1", 7.0), response("y2", 8.0)])
    before = [response("b1", 1.0, evaluator=0.1), response("b2", 2.0, evaluator=0.2)]
    write_evaluation(evaluation(one, two, opponents=before), tmp_path)
    found = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["checkpoint"], r["before"], r["after"], r["score_before"], r["score_after"]) for r in found] == [
        ("one", "b1", "x1", 1.0, 5.0),
        ("one", "b2", "x2", 2.0, 6.0),
        ("two", "b1", "y1", 1.0, 7.0),
        ("two", "b2", "y2", 2.0, 8.0),
    ]
    assert found[1] == {
        "checkpoint": "one", "prompt": "a prompt", "before": "b2", "after": "x2", "score_before": 2.0,
        "score_after": 6.0, "evaluator_before": 0.2, "evaluator_after": 0.6, "kl": 0.3,
    }  # fmt: skip


def test_a_picture_over_the_iterations_of_one_run(tmp_path):
    two = evaluation(
        policy("iter_000004", 4, reward=2.0, kl_exact=1.0, entropy=1.0),
        policy("iter_000002", 2, reward=1.5, kl_exact=0.5, entropy=1.5),
    )
    assert [p.iteration for p in curve(two)] == [0, 2, 4]
    files = write_evaluation(two, tmp_path)
    assert (tmp_path / PICTURE) in files
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert PICTURE in (tmp_path / "eval.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "policies",
    [
        [policy("final", 4, reward=2.0)],
        [policy("a/final", 4, run="a", reward=2.0), policy("b/final", 6, run="b", reward=2.0)],  # no line joins two
        [policy("x", None, reward=2.0), policy("y", None, reward=2.0)],
    ],
)
def test_no_picture_otherwise(tmp_path, policies):
    (tmp_path / PICTURE).write_bytes(b"of an earlier evaluation")
    files = write_evaluation(evaluation(*policies), tmp_path)
    assert [file.name for file in files] == ["eval.json", "eval.md", "samples.jsonl", "samples.html"]
    assert not (tmp_path / PICTURE).exists()
    assert PICTURE not in (tmp_path / "eval.md").read_text(encoding="utf-8")


def test_the_picture_does_without_an_evaluator(tmp_path):
    figures = {"reward": 1.0, "kl_exact": 1.0, "entropy": 1.0}
    write_evaluation(evaluation(policy("a", 1, **figures), policy("b", 2, **figures, evaluator=1.0)), tmp_path)
    assert (tmp_path / PICTURE).is_file()


def test_secrets_of_the_environment_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", "sk-planted-0123456789abcdef")
    leaky = policy("final", 4, responses=[response("it is sk-planted-0123456789abcdef")])
    for file in write_evaluation(evaluation(leaky), tmp_path):
        assert b"planted" not in file.read_bytes(), file.name


def test_half_a_surrogate_pair_can_be_written(tmp_path):
    write_evaluation(evaluation(policy("final", 4, responses=[response("\ud83d and é")])), tmp_path)
    row = json.loads((tmp_path / "samples.jsonl").read_text(encoding="utf-8"))
    assert row["after"] == "\ud83d and é"


def test_the_judge_says_what_it_judged():
    line = judge_line(ACCOUNT)
    assert "3 of 4 pairs judged, 2 won, 1 tied, 0 lost; 1 changed with the order" in line
    assert line.endswith("Stopped early: cost cap reached.")


def test_as_json_keeps_the_order_of_policies():
    found = as_json(evaluation(policy("one", 2, reward=1.0), policy("two", 4, reward=1.0)))
    assert [p["name"] for p in found["policies"]] == ["initial", "one", "two"]


def scored(*scores):
    return [response(f"r{i}", score) for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "best", "typical", "worst"),
    [
        ((1.0,), [0], [], []),
        ((1.0, 2.0), [1], [], [0]),
        ((1.0, 3.0, 2.0), [1], [2], [0]),
        ((7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0), [0, 2], [4, 6], [1, 3]),
        (range(64), [63, 62, 61, 60, 59, 58], [34, 33, 32, 31, 30, 29], [0, 1, 2, 3, 4, 5]),
        ([1.0] * 9, [0, 1, 2], [3, 4, 5], [8, 7, 6]),
    ],
)
def test_which_samples_the_page_shows(scores, best, typical, worst):
    """The worst begin with the worst; none stands twice."""
    assert chosen(scored(*scores)) == {"Best": best, "Typical": typical, "Worst": worst}


def test_the_evaluator_orders_the_samples_where_there_is_one():
    after = [response(score=3.0, evaluator=1.0), response(score=2.0, evaluator=2.0), response(score=1.0, evaluator=3.0)]
    assert chosen(after) == {"Best": [2], "Typical": [1], "Worst": [0]}


class Tags(HTMLParser):
    """All tags and text, and whether tags close in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = set(), [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not {"src", "href"} & {name for name, _ in attributes}  # it fetches nothing
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def test_samples_stand_side_by_side_and_never_become_markup():
    evil = "<script>alert(1)</script><img src=x onerror='x'>\" & $body ${about}"
    after = [response("  \n", 1.234, evaluator=-0.5, prompt=evil)]
    page = Tags(samples_page(evaluation(policy("<b>run", 4, responses=after), opponents=[response(evil, -2.0)])))
    assert page.tags == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "pre", "div", "span",
    }  # fmt: skip
    text = [piece for piece in page.text if piece]
    assert text[text.index("<b>run") :] == [
        "<b>run", "Best", "Prompt", evil, "before: reward -2.00", evil,
        "after: reward 1.23, evaluator -0.50", "(empty)",
    ]  # fmt: skip
