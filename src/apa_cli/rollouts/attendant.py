"""The hooks around the steps of an iteration. This class does nothing; the steward's keeps a run alive."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import Tensor

from apa_cli.rollouts.trajectory import Trajectory

T = TypeVar("T")


class Attendant:
    """Runs each step as it is. `tokens`: the budget of a micro-batch."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Around each part of an iteration."""
        return nullcontext()

    def fit(self, work: Callable[[int], T], plan: Callable[[int], Sequence[Sized]], *, where: str) -> T:
        """Run `work` within a token budget. `plan` gives its micro-batches, `where` names it."""
        return work(self.tokens)

    def sampled(self, before: Trajectory, after: Trajectory) -> None:
        """Called with the trajectory as sampled and after all passes."""

    def scored(self, trajectory: Trajectory) -> None:
        """Called with the scored trajectory; scores may be missing."""

    def collect(self, work: Callable[[], Any]) -> Any:
        """Collect what an iteration learns from."""
        return work()

    def minibatch(self, rows: Tensor, gradients: Callable[[int], Any], step: Callable[[Any], None]) -> None:
        """Compute the gradients of the minibatch `rows` within a token budget, then take the optimizer step."""
        step(gradients(self.tokens))
