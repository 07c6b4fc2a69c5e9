"""samples.html: the right responses, each once, in a page that needs nothing else."""

import re
from html.parser import HTMLParser

import pytest

from apa_cli.evaluation.eval_report import chosen, samples_page
from apa_cli.evaluation.evaluate_checkpoints import EvaluatedPolicy, Evaluation
from apa_cli.evaluation.respond import JudgedResponse


def response(text, score=0.0, evaluator=None, prompt="a prompt"):
    return JudgedResponse(
        prompt=prompt, response=text, token_ids=(1,), ended=True, score=score, evaluator=evaluator,
        kl=0.0, kl_k3=0.0, kl_exact=0.0, entropy=0.0,
    )  # fmt: skip


def scored(*scores):
    return [response(f"r{i}", score) for i, score in enumerate(scores)]


def page(after, before=None, name="final"):
    policies = [
        EvaluatedPolicy(name=each, iteration=0, path="x", figures={}, responses=after) for each in ("initial", name)
    ]
    return samples_page(
        Evaluation(
            policies=policies,
            opponents=before or [response(f"before {i}") for i in range(len(after))],
            prompts="some prompts",
            rows=["mine.jsonl, line 4"],
            reference=None,
            decoding="sampled",
            seed=0,
            seconds=1.0,
        )
    )


class Tags(HTMLParser):
    """Every tag with its attributes, all text, and whether tags close in order."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(html):
    parser = Tags()
    parser.feed(html)
    assert parser.open == []
    return parser


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((1.0,), ([0], [], [])),
        ((1.0, 2.0), ([1], [], [0])),
        ((1.0, 3.0, 2.0), ([1], [2], [0])),
        ((7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0), ([0, 2], [4, 6], [1, 3])),
    ],
)
def test_few_responses(scores, expected):
    assert tuple(chosen(scored(*scores)).values()) == expected


def test_many_responses():
    """Scores 0 to 63: the six best, the six in the middle, the six worst beginning with the worst."""
    found = chosen(scored(*range(64)))
    assert found["Best"] == [63, 62, 61, 60, 59, 58]
    assert found["Typical"] == [34, 33, 32, 31, 30, 29]
    assert found["Worst"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 17, 18, 19, 64])
def test_none_stands_twice_and_kinds_are_in_order(n):
    scores = [float((i * 37) % n) for i in range(n)]
    found = chosen(scored(*scores))
    indices = [i for kind in found.values() for i in kind]
    assert len(set(indices)) == len(indices) >= min(n, 3)
    best, typical, worst = ([scores[i] for i in kind] for kind in found.values())
    assert max(scores) in best
    assert n == 1 or min(scores) in worst
    if typical:
        assert min(best) >= max(typical)
        assert min(typical) >= max(worst)
        middle = sorted(scores)[(n - 1) // 2]
        assert min(typical) - 2 <= middle <= max(typical) + 2


def test_equal_scores_still_fill_the_page():
    found = chosen(scored(*[1.0] * 9))
    assert [len(kind) for kind in found.values()] == [3, 3, 3]


def test_the_evaluator_orders_where_there_is_one():
    after = [response("a", 3.0, evaluator=1.0), response("b", 2.0, evaluator=2.0), response("c", 1.0, evaluator=3.0)]
    assert chosen(after) == {"Best": [2], "Typical": [1], "Worst": [0]}


def test_before_and_after_stand_side_by_side():
    html = page([response("new text", 1.234, evaluator=-0.5, prompt="ask me")], [response("old text", -2.0)])
    text = [piece.strip() for piece in parsed(html).text if piece.strip()]
    start = text.index("ask me")
    assert text[start : start + 5] == [
        "ask me", "before: reward -2.00", "old text", "after: reward 1.23, evaluator -0.50", "new text",
    ]  # fmt: skip


def test_nothing_that_a_model_says_becomes_markup():
    evil = "<script>alert(1)</script><img src=x onerror='x'>\" & $body ${about}"
    found = parsed(page([response(evil, prompt=evil)], [response(evil)], name="<b>run"))
    assert {tag for tag, _ in found.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "pre", "div", "span",
    }  # fmt: skip
    text = "".join(found.text)
    assert text.count(evil) == 3  # prompt, before, after
    assert "<b>run" in text


def test_an_empty_response_says_so():
    assert "(empty)" in page([response("  \n")])


def test_the_page_needs_nothing_from_elsewhere():
    html = page(scored(1.0, 2.0, 3.0))
    found = parsed(html)
    assert not re.search(r"https?:|//|url\(|@import", html)
    assert not any({"src", "href"} & set(attributes) for _, attributes in found.tags)
    assert html.startswith("<!doctype html>")
    assert ("meta", {"charset": "utf-8"}) in found.tags


def test_the_initial_policy_has_no_section_of_its_own():
    html = page(scored(1.0, 2.0, 3.0))
    assert html.count("<h2>") == 1
    assert html.count("<h3>") == 3
