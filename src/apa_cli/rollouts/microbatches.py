"""Splitting rows into micro-batches that hold at most so many tokens, padding included."""

from __future__ import annotations

from collections.abc import Sequence


def plan_microbatches(
    prompt_lengths: Sequence[int], response_lengths: Sequence[int], token_budget: int
) -> list[list[int]]:
    """Row indices of each micro-batch, longest rows first so that little is padded.

    n rows cost n × (their longest prompt + their longest response). A row longer than the budget goes alone.
    """
    totals = [p + t for p, t in zip(prompt_lengths, response_lengths, strict=True)]
    batches: list[list[int]] = []
    widest = (0, 0)
    for row in sorted(range(len(totals)), key=lambda row: (-totals[row], row)):
        joined = (max(widest[0], prompt_lengths[row]), max(widest[1], response_lengths[row]))
        if batches and sum(joined) * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(row)
            widest = joined
        else:
            batches.append([row])
            widest = (prompt_lengths[row], response_lengths[row])
    return batches
