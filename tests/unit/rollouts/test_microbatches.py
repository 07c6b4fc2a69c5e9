"""Every row goes somewhere once, and no micro-batch is larger than its budget unless one row alone is."""

from hypothesis import given, settings
from hypothesis import strategies as st

from apa_cli.rollouts.microbatches import plan_microbatches

ROWS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=40)


@given(ROWS, st.integers(1, 400))
@settings(max_examples=300, deadline=None)
def test_every_row_once_within_the_budget(lengths, budget):
    prompts, responses = [p for p, _ in lengths], [t for _, t in lengths]
    batches = plan_microbatches(prompts, responses, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        cost = len(batch) * (max(prompts[r] for r in batch) + max(responses[r] for r in batch))
        assert cost <= budget or len(batch) == 1


def test_rows_of_equal_length_fill_each_micro_batch():
    assert [len(batch) for batch in plan_microbatches([3] * 7, [2] * 7, 15)] == [3, 3, 1]
    assert plan_microbatches([3] * 7, [2] * 7, 10**6) == [list(range(7))]


def test_uneven_rows_are_grouped_by_length():
    """One row of 100 and ten of 10 need 200 tokens, not 11 × 100."""
    batches = plan_microbatches([0] * 11, [10] * 5 + [100] + [10] * 5, 100)
    assert [sorted(batch) for batch in batches] == [[5], [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]]


def test_no_rows():
    assert plan_microbatches([], [], 10) == []
