"""Every row goes somewhere once, no micro-batch is over its budget unless one row alone is, and little is padded."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_cli.models.microbatches import OVERHEAD_TOKENS, plan_microbatches

# Every 24th part of the prompt lengths of Anthropic's harmless-base test set, BPE of 8,192 tokens, cut at 384.
HH_PROMPTS = [11, 16, 18, 20, 22, 26, 33, 45, 57, 66, 77, 87, 97, 108, 118, 130, 142, 156, 171, 188, 215, 252]
HH_PROMPTS += [295, 377, 384]
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


def padded(batches, prompts, responses):
    """Tokens in all rectangles."""
    return sum(len(b) * (max(prompts[r] for r in b) + max(responses[r] for r in b)) for b in batches)


SMALL = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=7)


@given(SMALL, st.integers(1, 2000), st.sampled_from(["cpu", "cuda"]))
@settings(max_examples=200, deadline=None)
def test_no_other_way_to_cut_the_sorted_rows_is_cheaper(lengths, budget, device):
    """All 2^(n − 1) ways to cut, tried one after the other."""
    lengths = sorted(lengths, reverse=True)
    prompts, responses = [p for p, _ in lengths], [t for _, t in lengths]
    n, costs = len(lengths), []
    for cuts in range(2 ** (n - 1)):
        edges = [0, *(i for i in range(1, n) if cuts >> (i - 1) & 1), n]
        batches = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
        if all(len(b) == 1 or padded([b], prompts, responses) <= budget for b in batches):
            costs.append(padded(batches, prompts, responses) + OVERHEAD_TOKENS[device] * len(batches))
    planned = plan_microbatches(prompts, responses, budget, device_type=device)
    assert padded(planned, prompts, responses) + OVERHEAD_TOKENS[device] * len(planned) == min(costs)


@pytest.mark.parametrize(("rows", "most"), [(16, 1.15), (64, 1.10)])
def test_a_little_of_real_dialogues_is_padding(rows, most):
    """HH prompts up to 384 tokens, responses of 64; padding all to their longest takes 2.2 and 2.4 times the tokens."""
    chance = random.Random(0)
    spent = needed = whole = 0
    for _ in range(50):
        prompts, responses = chance.choices(HH_PROMPTS, k=rows), [64] * rows
        spent += padded(plan_microbatches(prompts, responses, 16_384), prompts, responses)
        whole += padded([list(range(rows))], prompts, responses)
        needed += sum(prompts) + sum(responses)
    assert whole > 2 * needed
    assert spent < most * needed
