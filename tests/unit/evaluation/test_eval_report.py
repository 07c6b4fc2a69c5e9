"""The files of an evaluation: numbers as they were measured, in formats that others can read."""

import json
import math
from html import escape
from pathlib import Path

from apa_cli.evaluation.bootstrap import Estimate
from apa_cli.evaluation.eval_report import chosen, samples_page, write_evaluation
from apa_cli.evaluation.evaluate_checkpoints import EvaluatedPolicy, Evaluation
from apa_cli.evaluation.respond import JudgedResponse


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


def test_what_json_cannot_hold_becomes_null(tmp_path):
    broken = policy("final", 4, kl_exact=math.inf, responses=[response(kl_exact=math.inf, score=math.nan)])
    write_evaluation(evaluation(broken), tmp_path)
    figures = strict_json((tmp_path / "eval.json").read_text(encoding="utf-8"))["policies"][1]["figures"]
    assert figures["kl_exact"] == {"value": None, "low": None, "high": None}
    row = strict_json((tmp_path / "samples.jsonl").read_text(encoding="utf-8"))
    assert (row["kl"], row["score_after"]) == (None, None)


def test_the_evaluator_orders_the_samples_where_there_is_one():
    after = [response(score=3.0, evaluator=1.0), response(score=2.0, evaluator=2.0), response(score=1.0, evaluator=3.0)]
    assert chosen(after) == {"Best": [2], "Typical": [1], "Worst": [0]}


def test_samples_never_become_markup():
    evil = "<script>alert(1)</script><img src=x onerror='x'>\" & $body ${about}"
    after = [response("  \n", 1.234, evaluator=-0.5, prompt=evil)]
    page = samples_page(evaluation(policy("<b>run", 4, responses=after), opponents=[response(evil, -2.0)]))
    assert not [tag for tag in ("<script", "<img", "<b>", " src=", " href=") if tag in page.replace(escape(evil), "")]
    assert page.count(escape(evil)) == 2
    assert "after: reward 1.23, evaluator -0.50" in page
