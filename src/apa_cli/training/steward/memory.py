"""Repeat work with smaller micro-batches if memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from apa_cli.errors import UserError
from apa_cli.tracking.log import LOGGER

T = TypeVar("T")
_SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # of libraries that raise a plain RuntimeError


@dataclass(kw_only=True)
class TokenBudget:
    """The most tokens in a micro-batch: as configured, halved for the rest of the run whenever they do not fit."""

    configured: int
    tokens: int = 0

    def __post_init__(self) -> None:
        self.tokens = self.tokens or self.configured

    def state_dict(self) -> dict[str, Any]:
        return {"configured": self.configured, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A changed configuration is used as it is."""
        if state["configured"] == self.configured:
            self.tokens = state["tokens"]


def within_memory(
    work: Callable[[int], T],
    budget: TokenBudget,
    plan: Callable[[int], Sequence[Sized]],
    *,
    undo: Callable[[], None] = lambda: None,
    where: str,
) -> T:
    """`work(budget.tokens)`, repeated with half the budget while it runs out of memory.

    `plan` gives the micro-batches of a budget, which is halved until they become smaller. `undo` reverts a failed
    attempt; `where` names the work in the log. Raises UserError if a single row does not fit.
    """
    while True:
        try:
            return work(budget.tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # here the error and the frames that hold the attempt's tensors are gone
        undo()
        free_memory()
        _halve(budget, plan, where)


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
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def free_memory() -> None:
    """Free memory that is no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _halve(budget: TokenBudget, plan: Callable[[int], Sequence[Sized]], where: str) -> None:
    failed = [len(rows) for rows in plan(budget.tokens)]
    tokens = budget.tokens // 2
    while tokens and [len(rows) for rows in plan(tokens)] == failed:
        tokens //= 2
    if not tokens:
        raise UserError(
            "training.microbatch_tokens",
            f"one response alone does not fit in the device's memory ({where})",
            "lower data.max_prompt_tokens or generation.max_new_tokens, set policy.gradient_checkpointing=true, "
            "or add policy=lora",
        )
    logging.getLogger(LOGGER).warning(
        "out of memory in %s: training.microbatch_tokens is now %d instead of %d, with the same gradient",
        where,
        tokens,
        budget.tokens,
    )
    budget.tokens = tokens
