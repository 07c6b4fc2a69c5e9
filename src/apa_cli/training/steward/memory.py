"""Repeat work with smaller micro-batches if memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

import torch

from apa_cli.errors import UserError
from apa_cli.tracking.log import LOGGER
from apa_cli.training.steward.health import Health

T = TypeVar("T")
_SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # of libraries that raise a plain RuntimeError


def within_memory(
    work: Callable[[int], T],
    health: Health,
    plan: Callable[[int], Sequence[Sized]],
    *,
    undo: Callable[[], None] = lambda: None,
    where: str,
) -> T:
    """`work(health.tokens)`, repeated with half the tokens while it runs out of memory.

    `plan` gives the micro-batches of a budget, which is halved until they become smaller. `undo` reverts a failed
    attempt; `where` names the work in the log. Raises UserError if a single row does not fit.
    """
    while True:
        try:
            return work(health.tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # here the error and the frames that hold the attempt's tensors are gone
        undo()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before, tokens = health.tokens, health.tokens // 2
        failed = [len(rows) for rows in plan(before)]
        while tokens and [len(rows) for rows in plan(tokens)] == failed:
            tokens //= 2
        if not tokens:
            raise UserError(
                "training.microbatch_tokens",
                f"one response alone does not fit in the device's memory ({where})",
                "lower data.max_prompt_tokens or generation.max_new_tokens, set policy.gradient_checkpointing=true, "
                "or add policy=lora",
            )
        health.tokens = tokens
        said = "out of memory in %s: training.microbatch_tokens is now %d instead of %d, with the same gradient"
        logging.getLogger(LOGGER).warning(said, where, tokens, before)


@contextmanager
def enough_memory(where: str, problem: str, remedy: str) -> Iterator[None]:
    """Raise UserError if memory runs out in work that cannot be done in smaller pieces."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(where, f"{problem} not fit in the device's memory", remedy) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device, by its type or by what a library's message says."""
    signs = any(sign in str(error) for sign in _SIGNS)
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and signs)
