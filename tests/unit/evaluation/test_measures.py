"""Figures of a few responses, worked out by hand."""

import pytest

from apa_cli.evaluation.measures import LABELS, compare, diversity, measure, ngrams, repetition, verdict_rates
from apa_cli.evaluation.respond import JudgedResponse
from apa_cli.rollouts.statistics import distinct_n


def response(score=0.0, ids=(1, 2, 3), **changes):
    fields = {
        "prompt": "p", "response": "r", "token_ids": tuple(ids), "ended": True, "score": score, "evaluator": None,
        "kl": 0.0, "kl_k3": 0.0, "kl_exact": 0.0, "entropy": 0.0,
    }  # fmt: skip
    return JudgedResponse(**{**fields, **changes})


def values(responses, initial=None):
    return {name: figure.value for name, figure in measure(responses, initial, resamples=20, seed=0).items()}


def test_means_are_over_responses():
    found = values(
        [
            response(1.0, kl=0.5, kl_k3=0.2, kl_exact=0.3, ended=True, ids=(1, 2)),
            response(4.0, kl=-0.1, kl_k3=0.4, kl_exact=0.5, ended=False, ids=(1, 2, 3, 4)),
        ]
    )
    assert found["reward"] == pytest.approx(2.5)
    assert found["kl"] == pytest.approx(0.2)
    assert found["kl_k3"] == pytest.approx(0.3)
    assert found["kl_exact"] == pytest.approx(0.4)
    assert found["eos_rate"] == pytest.approx(0.5)
    assert found["response_length"] == pytest.approx(3.0)
    assert not any("win" in name or "evaluator" in name for name in found)


def test_entropy_is_a_mean_over_tokens():
    """2 nats over 1 token and 3 over 9: 5 / 10, where the mean of the responses' means would be 7/6."""
    found = values([response(ids=(1,), entropy=2.0), response(ids=tuple(range(9)), entropy=3.0)])
    assert found["entropy"] == pytest.approx(0.5)


def test_wins_ties_and_losses():
    ours = [response(2.0), response(1.0), response(0.0), response(5.0)]
    theirs = [response(1.0), response(1.0), response(3.0), response(4.0)]
    found = values(ours, theirs)
    assert (found["win_rate"], found["tie_rate"], found["lose_rate"]) == (0.5, 0.25, 0.25)
    assert "evaluator_win_rate" not in found


def test_the_evaluator_decides_its_own_wins():
    ours = [response(2.0, evaluator=evaluator) for evaluator in (0.0, 3.0, 4.0, 1.0)]
    theirs = [response(1.0, evaluator=1.0)] * 4
    found = values(ours, theirs)
    assert found["win_rate"] == 1.0
    assert (found["evaluator_win_rate"], found["evaluator_tie_rate"], found["evaluator_lose_rate"]) == (0.5, 0.25, 0.25)
    assert found["evaluator"] == 2.0


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        (1.0, 1.0, 0),
        (1.0, 1.0 + 5e-7, 0),
        (1.0, 1.0 + 5e-6, -1),
        (1.0 + 5e-6, 1.0, 1),
        (0.0, -5e-7, 0),
        (1e4, 1e4 + 5e-3, 0),  # float32 scores of this size differ by as much from rounding alone
        (1e4, 1e4 + 5e-2, -1),
        (-2.0, -3.0, 1),
    ],
)
def test_rounding_is_a_tie(ours, theirs, outcome):
    assert compare(ours, theirs) == outcome
    assert compare(theirs, ours) == -outcome


def test_every_figure_has_a_label():
    """The table shows only what has one."""
    figures = measure([response(evaluator=1.0)], [response(evaluator=0.0)], resamples=5, seed=0)
    figures |= measure([response(score=float("nan"), evaluator=float("inf"))], resamples=5, seed=0)
    assert set(figures) | set(verdict_rates("judge_", [1], resamples=5, seed=0)) == set(LABELS)


def test_different_responses():
    """(1, 2) twice, (1,) and (2, 1): three of four differ. Without one of the twins all three do; otherwise 2 of 3."""
    found = measure([response(ids=ids) for ids in [(1, 2), (1, 2), (1,), (2, 1)]], resamples=5, seed=0)
    figure = found["unique_fraction"]
    assert figure.value == pytest.approx(0.75)
    # √(3/4 · 4 · (1/6)²) = 1/√12
    assert figure.low == pytest.approx(0.75 - 1.959964 / 12**0.5)
    assert figure.high == 1.0


def test_distinct_n_is_over_the_whole_batch():
    """1 2 1 2 and 2 1: unigrams {1, 2} of 6; bigrams 12 21 12 21: 2 of 4."""
    found = values([response(ids=(1, 2, 1, 2)), response(ids=(2, 1))])
    assert found["distinct_1"] == pytest.approx(2 / 6)
    assert found["distinct_2"] == pytest.approx(2 / 4)


def test_leaving_out_is_computed_as_if_it_were_done():
    """Against `distinct_n` of the batch with each response really taken out, and the textbook's formula."""
    batch = [(1, 2, 3, 1), (2, 3), (), (4, 4, 4, 4), (1, 2)]
    for n in (1, 2):
        figure = diversity([ngrams(row, n) for row in batch])
        without = [distinct_n(batch[:i] + batch[i + 1 :], n) for i in range(5)]
        center = sum(without) / 5
        error = (4 / 5 * sum((value - center) ** 2 for value in without)) ** 0.5
        assert figure.value == pytest.approx(distinct_n(batch, n))
        assert figure.low == pytest.approx(max(0.0, figure.value - 1.959964 * error))
        assert figure.high == pytest.approx(min(1.0, figure.value + 1.959964 * error))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((), 0.0),
        ((1, 2), 0.0),
        ((1, 2, 3), 0.0),
        ((1, 1, 1, 1), 0.5),  # 111 twice
        ((1, 2, 3, 1, 2, 3), 0.25),  # 123 231 312 123
    ],
)
def test_repetition_within_a_response(ids, expected):
    assert repetition(ids) == pytest.approx(expected)


def test_the_seed_and_the_number_of_resamples_are_passed_on():
    batch = [response(float(i % 5), ids=tuple(range(i % 4 + 1)), entropy=i * 0.1) for i in range(20)]
    first = measure(batch, resamples=50, seed=1)
    assert measure(batch, resamples=50, seed=1) == first
    for changed in (measure(batch, resamples=50, seed=2), measure(batch, resamples=51, seed=1)):
        for name in ("reward", "entropy", "response_length"):
            assert changed[name].value == first[name].value
            assert changed[name] != first[name]
