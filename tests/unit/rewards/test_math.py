r"""What is read as a final answer, what equals the right one, and that no expression holds a run up."""

import json
import logging
import sys
import threading
import time

import pytest
from tiny_models import make_config

from apa_cli.config.schema import ScorerConfig
from apa_cli.errors import UserError
from apa_cli.rewards.final_answer import LONGEST, final_answer, right_answer
from apa_cli.rewards.math import MathReward, check_answers
from apa_cli.rewards.math_verifier import Verifier
from apa_cli.rewards.record import FinishedResponses
from apa_cli.rewards.scorers import WeightedRewards, complaint, score


@pytest.fixture(scope="module")
def verifier():
    pytest.importorskip("math_verify", reason="the extra math is not installed")
    return Verifier("reward")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        # marks, of which the last counts; an open box and a heading are none
        ("She has 3 + 4.\n#### 7", "7"),
        ("#### 1\nNo: #### 2", "2"),
        (r"\boxed{1}, then #### 2", "2"),
        (r"#### 1, so \boxed{2} of 9", "2"),
        (r"\boxed{\frac{1}{2}} of 9", r"\frac{1}{2}"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{2\sqrt{3}}", r"2\sqrt{3}"),
        (r"\boxed{42 dollars}", "42"),
        (r"\boxed{\text{42 apples}}", "42"),
        (r"\boxed{\$1{,}234}", "1234"),
        (r"\boxed{", None),
        (r"so \boxed{4", "4"),
        ("#### Step 2: add\nwhich gives 5", "5"),
        ("#### **$42**.", "42"),
        (r"<think>\boxed{3}?</think> It is 5.", "5"),
        # without a mark the last number
        ("3 + 4 = 7 apples.", "7"),
        ("He owes -$5.", "-5"),
        ("It is $-5", "-5"),
        ("10-4", "4"),
        ("that is \u22125", "-5"),
        ("It sold for $1,234,567.50!", "1234567.50"),
        ("1\u202f234 people", "1234"),
        ("a share of 18%", "18"),
        ("3/4 of it", r"\frac{3}{4}"),
        ("2 1/2 hours", r"\frac{5}{2}"),
        (r"\( -\frac{3}{4} \)", r"-\frac{3}{4}"),
        ("an area of 42 cm^2", "42"),
        ("42 m2", "42"),
        ("1.5e3 or 1.6 × 10^-3", "0.0016"),
        ("10^5", "10^{5}"),
        ("The answer is **.5**.", ".5"),
        # one number or two
        ("1,5", None),
        ("€100,00", None),
        ("1 000", None),
        ("I do not know", None),
        ("", None),
        ("1" * (LONGEST + 1), None),
    ],
)
def test_the_final_answer(response, answer):
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("9 * 2 = 18\n#### 18", "18"),
        (r"so $x = \boxed{x^2}$", "x^2"),
        (1234, "1234"),
        (-0.5, "-0.5"),
        ("1,234", "1234"),
        (r"$\frac{1}{2}$", r"\frac{1}{2}"),
        ("72 dollars", "72"),
        ("x + 1", "x + 1"),
        *((value, None) for value in ("", " ", None, True, ["1"], "unknown", "3 apples or 4", "sqrt(3)", float("nan"))),
    ],
)
def test_the_right_answer(value, answer):
    assert right_answer(value) == answer


@pytest.mark.parametrize(
    ("right", "answer", "equal"),
    [
        ("18", "18.00", 1),
        ("18", "17", 0),
        ("-5", "5", 0),
        (r"\frac{1}{3}", "0.333333", 1),
        (r"\frac{1}{3}", "0.33", 0),
        ("0.000000001", "0.000000002", 0),
        (r"2\sqrt{3}", r"\sqrt{12}", 1),
        ("(x+1)^2", "x^2+2x+1", 1),
        ("5", "x = 5", 1),
        ("42", r"42\text{ apples}", 1),
        ("42", r"\frac{", None),
        ("42", "10^{10^{10}}!", None),  # no alarm stops it
        ("18", "18.0", 1),  # asked of a new process
    ],
)
def test_what_is_equal(verifier, right, answer, equal):
    found = []
    thread = threading.Thread(target=lambda: found.append(verifier.equal(right, answer)))
    thread.start()
    thread.join(60)
    assert found == [equal]


def test_long_texts_are_read_in_no_time():
    started = time.process_time()
    for text in (r"\boxed{", "#### ", "1 1/", "1,111", "{", "9**", r"\frac{", "1" * 9, "\\", "$ "):
        final_answer(text * 5_000)
        right_answer(text * 5_000)
    assert time.process_time() - started < 10


def test_an_interrupt_leaves_no_reply_to_the_next_question(verifier):
    class Interrupted:
        def __init__(self, pipe):
            self.pipe, self.close, self.waiting = pipe, pipe.close, True

        def readline(self):
            if self.waiting:
                self.waiting = False
                raise KeyboardInterrupt
            return self.pipe.readline()

    assert verifier.equal("1", "1.0") == 1
    verifier._process.stdout = Interrupted(verifier._process.stdout)
    with pytest.raises(KeyboardInterrupt):
        verifier.equal("1", "1.00")
    assert verifier.equal("1", "2") == 0


def finished(responses, **columns):
    count = len(responses)
    return FinishedResponses(
        prompts=["p"] * count, responses=responses, messages=None, columns=columns, token_ids=[[1]] * count
    )


def test_scores_and_counts(verifier, caplog):
    reward = MathReward(ScorerConfig(kind="math", answer_column="answer"), key="reward")
    rows = finished(["so 18", "17", "who knows?", "5"], answer=["#### 18", "#### 18", "18", "any"])
    with caplog.at_level(logging.WARNING):
        scored = score(reward, rows)
        score(reward, rows)
    assert scored.scores[:3] == [1.0, 0.0, 0.0]
    assert scored.scores[3] != scored.scores[3]
    assert scored.parts == {"unreadable": [0.0, 0.0, 1.0, 0.0]}
    assert [record.getMessage() for record in caplog.records] == [
        "reward: no final answer can be read in 1 of 4 responses, which score 0; the first ends 'who knows?'; "
        "…/unreadable is their share"
    ]
    both = WeightedRewards({"right": reward, "again": reward}, {"right": 2.0, "again": -0.5})
    scored = score(both, rows)
    assert scored.scores[:3] == [1.5, 0.0, 0.0]
    assert {name: values[2] for name, values in scored.parts.items()} == {
        "right": 0.0,
        "again": 0.0,
        "right_unreadable": 1.0,
        "again_unreadable": 1.0,
    }
    assert complaint(both, scored, 3).where == "reward.answer_column"
    with pytest.raises(UserError, match=r"reward\.answer_column: the data has no column answer"):
        score(reward, finished(["1"], other=["1"]))


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([{"prompt": "a", "answer": "#### 1"}, {"prompt": "b", "answer": "x + 1"}], None),
        ([{"prompt": "a", "solution": "1"}], "reward.answer_column: .*has no column answer .it has solution."),
        ([{"prompt": "a", "answer": 1}, {"prompt": "b"}], r"line 2: no right answer .* answer: \(null\)"),
        ([{"prompt": "a", "answer": ""}], r"line 1: no right answer .* answer: \(empty\)"),
        ([{"prompt": "a", "answer": r"\frac{"}], "line 1: no right answer"),
        ([{"prompt": "a", "answer": "maybe 3, or 4"}], "line 1: no right answer .* maybe 3, or 4; give"),
    ],
)
def test_right_answers_are_read_before_training(verifier, tmp_path, rows, error):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        "p", data__path=str(file), reward__kind="math", reward__function=None, reward__answer_column="answer"
    )
    if error is None:
        check_answers(config)
    else:
        with pytest.raises(UserError, match=error):
            check_answers(config)


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(UserError, match=r"reward.kind: math-verify does not start"):
        Verifier("reward").equal("1", "1.0")
