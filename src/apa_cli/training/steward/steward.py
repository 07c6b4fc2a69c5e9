"""The steward of a run wraps the steps of an iteration, which do not know about it.

It times the phases, repeats work in smaller pieces if memory runs out, skips minibatches with numbers that are not
finite, handles signals where stopping loses nothing, and keeps what a checkpoint needs to resume.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from torch import Tensor

from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError
from apa_cli.models.roles import Models
from apa_cli.rewards.record import Scored
from apa_cli.rewards.scorers import Scorers, complaint
from apa_cli.rollouts.agreement import check_first_rollout
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.tracking.log import LOGGER
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.random_states import RandomStates
from apa_cli.training.state import RolloutStart, TrainingState, Work
from apa_cli.training.steward.finiteness import all_finite, bad_weights, culprit, fault_in
from apa_cli.training.steward.interrupts import Interrupts
from apa_cli.training.steward.memory import enough_memory, within_memory
from apa_cli.training.update import Gradients

T = TypeVar("T")
UNSCORED_LIMIT = 5  # iterations in a row without any score until the run saves and stops
_log = logging.getLogger(LOGGER)


class Steward(Attendant):
    def __init__(
        self,
        config: TrainConfig,
        models: Models,
        scorers: Scorers,
        state: TrainingState,
        tracker: Tracker,
        interrupts: Interrupts,
    ) -> None:
        super().__init__(config.training.microbatch_tokens)
        self.config, self.models, self.scorers = config, models, scorers
        self.state, self.tracker, self.interrupts = state, tracker, interrupts
        self._seconds: dict[str, float] = {}  # of each phase in this iteration
        self._began = self._cpu_began = 0.0

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Wrap one iteration and start its clock. A signal waits until weights and state are consistent."""
        work = self.state.work
        self._seconds = work.seconds if work is not None else {}
        self._began, self._cpu_began = time.perf_counter() - sum(self._seconds.values()), time.process_time()
        with self.interrupts.deferred():
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.tracker.phase(name)
        start = time.perf_counter()
        try:
            sampling = f"sampling {self.config.rollout.batch_size} responses at once does"
            lower = "lower it, generation.max_new_tokens or data.max_prompt_tokens"
            whole = name in ("generate", "read")  # cannot be done in smaller pieces
            with enough_memory("rollout.batch_size", sampling, lower) if whole else nullcontext():
                yield
            self.models.runtime.synchronize()
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def fit(self, work: Callable[[int], T], plan: Callable[[int], Sequence[Sized]], *, where: str) -> T:
        return within_memory(work, self.state.health, plan, where=where)

    def sampled(self, before: Trajectory, after: Trajectory) -> None:
        """Before training, check that the sampler's log-probs are the reference's."""
        if self.state.iteration == 0:
            reference = after.reference_logprobs
            check_first_rollout(before, reference, self.models.policy, self.config, self.tracker.note)

    def collect(self, work: Callable[[], Work]) -> Work:
        """The work restored from a checkpoint, or new work. Until that is complete, `state.start` is what resumes."""
        state = self.state
        if state.work is None:
            state.start = RolloutStart(
                prompts=state.prompts.state_dict(),
                moments=dict(state.moments.state_dict()),
                random=RandomStates.capture(),
            )
            with self.interrupts.immediate():
                made = work()
            state.work, state.start = made, None
            made.seconds = self._seconds
            state.health.unscored = 0 if bool(made.trajectory.scored.any()) else state.health.unscored + 1
        return state.work

    def scored(self, trajectory: Trajectory) -> None:
        """Warn of responses without a score. Raises UserError after UNSCORED_LIMIT iterations without any.

        This resets the count. A run resumed from there samples this rollout again.
        """
        health, scores = self.state.health, trajectory.scores
        assert scores is not None
        missing = (~trajectory.scored).nonzero().flatten().tolist()
        if not missing or self.scorers.reward is None:  # None: of logged scores
            return
        named = {name: given.tolist() for name, given in trajectory.named_scores.items()}
        said = complaint(self.scorers.reward, Scored(scores=scores.tolist(), parts=named), missing[0])
        count = f"{len(missing)} of {len(scores)} responses have no score and are left out"
        if len(missing) == len(scores):
            if health.unscored + 1 >= UNSCORED_LIMIT:
                health.unscored = 0
                problem = f"{said.problem}, and no response has had a score for {UNSCORED_LIMIT} iterations in a row"
                raise UserError(said.where, problem, said.remedy)
            count = f"none of the {len(scores)} responses has a score, so there is no step"
        self.tracker.warn(f"iteration {self.state.iteration + 1}: {said}; {count}")

    def minibatch(self, rows: Tensor, gradients: Callable[[int], Gradients], step: Callable[[Gradients], None]) -> None:
        """Learn from the minibatch if every number is finite, else skip and count it. Then handle a signal.

        Raises DivergedError after too many skipped in a row, and UserError if a single response does not fit in memory.
        State and weights are consistent then too.
        """
        state, work = self.state, self.state.work
        assert work is not None
        if wrong := self._take(work, rows, gradients, step):
            setting = self._setting(work)
            if work.skipped == 0:
                _log.warning("a minibatch is skipped, not finite: %s; %s", wrong, setting)
            work.skipped += 1
            work.progress.rows += len(rows)
            state.health.skip(wrong, setting)
        self.interrupts.check()

    def metrics(self) -> dict[str, float]:
        """Time, throughput, memory and skipped minibatches of the iteration."""
        work = self.state.work
        assert work is not None
        trajectory, total = work.trajectory, time.perf_counter() - self._began
        tokens = int(trajectory.prompt_mask.sum() + trajectory.response_mask.sum())
        return {
            "optim/skipped_minibatches": work.skipped,
            "time/iteration": total,
            "time/cpu": time.process_time() - self._cpu_began,
            **{f"time/{name}": seconds for name, seconds in self._seconds.items()},
            "throughput/tokens_per_second": tokens / total,
            "memory/peak_bytes": self.models.runtime.peak_bytes(),
        }

    def _take(
        self, work: Work, rows: Tensor, gradients: Callable[[int], Gradients], step: Callable[[Gradients], None]
    ) -> str | None:
        """Learn from the minibatch, or return what is not finite without learning."""
        if not bool(work.targets.usable.cpu()[rows].all()):  # not finite before the update
            return bad_weights(self.models.named_parameters()) or fault_in(work.trajectory, rows)
        optimizer = self.state.optimizer
        found = within_memory(
            gradients,
            self.state.health,
            lambda tokens: work.trajectory.microbatches(tokens, rows),
            undo=lambda: optimizer.zero_grad(set_to_none=True),
            where="the update",
        )
        if not all_finite(found):
            wrong = culprit(self.models, found)
            optimizer.zero_grad(set_to_none=True)
            return wrong
        work.stepping = True
        states = "AdamW's two numbers for each trained weight do"  # allocated in its first step
        with enough_memory("policy.adapter.r", states, "train fewer weights: policy=lora, or a lower rank"):
            step(found)
        self.state.health.skipped = 0
        work.stepping = False
        return None

    def _setting(self, work: Work) -> str:
        """For diagnosis: iteration 12, λ 0.3, scores from −1.2 to 3.4."""
        knob, scores = self.state.objective.knob, work.trajectory.scores
        assert scores is not None
        finite = scores[scores.isfinite()].tolist() or [float("nan")]
        spread = f"scores from {min(finite):.4g} to {max(finite):.4g}"
        return f"iteration {self.state.iteration + 1}, {knob.symbol} {knob.value:g}, {spread}"
