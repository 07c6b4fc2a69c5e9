"""Who stands around the steps of an iteration. This one stands aside; the one that keeps a run alive is the steward."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import Tensor

from apa_cli.rollouts.trajectory import Trajectory

T = TypeVar("T")


class Attendant:
    """Does what it is handed, as it is. `tokens`: the budget of a micro-batch."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Around each part of an iteration."""
        return nullcontext()

    def fit(self, work: Callable[[int], T], plan: Callable[[int], Sequence[Sized]], *, where: str) -> T:
        """Do `work` within a budget of tokens, of which `plan` gives the micro-batches; `where` names it."""
        return work(self.tokens)

    def sampled(self, before: Trajectory, after: Trajectory) -> None:
        """`before` as it was drawn, `after` with every pass."""

    def scored(self, trajectory: Trajectory) -> None:
        """`trajectory` with its scores, some of which may be missing."""

    def collect(self, work: Callable[[], Any]) -> Any:
        """Make what an iteration learns from."""
        return work()

    def minibatch(self, rows: Tensor, gradients: Callable[[int], Any], step: Callable[[Any], None]) -> None:
        """Learn from the minibatch `rows`: take its gradients within a budget of tokens, then the optimizer's step."""
        step(gradients(self.tokens))
