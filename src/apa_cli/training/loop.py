"""The loop: prompts → rollout → scores → targets → update → metrics → checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite, nan

import torch
from torch import Tensor

from apa_cli.algorithms import explained_variance
from apa_cli.checkpoints.store import CheckpointStore
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt
from apa_cli.errors import UserError
from apa_cli.evaluation.judge import Judgement, evaluate
from apa_cli.models.roles import Models
from apa_cli.rewards.reward_model import FinishedResponses
from apa_cli.rewards.weighted import Scored, complaint, score
from apa_cli.rollouts.agreement import check_first_rollout
from apa_cli.rollouts.collect import add_passes, finished_responses
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.logged import logged_rollout, logged_statistics
from apa_cli.rollouts.record import Rollout
from apa_cli.rollouts.reference_logprobs import ReferenceLogprobs
from apa_cli.rollouts.statistics import response_kl, rollout_statistics
from apa_cli.tracking.samples import Sample
from apa_cli.tracking.tracker import Tracker
from apa_cli.training.finiteness import describe_setting, sound_part, usable_rows
from apa_cli.training.guards import Guards
from apa_cli.training.interrupts import Interrupts
from apa_cli.training.memory import enough_memory, within_memory
from apa_cli.training.optimizer import learning_rate_factor, set_learning_rate
from apa_cli.training.random_states import RandomStates
from apa_cli.training.state import RolloutStart, TrainingState, Work
from apa_cli.training.targets import estimate_targets, length_penalties, shape_scores
from apa_cli.training.update import update

UNSCORED_LIMIT = 5  # iterations in a row without any score, at which the run saves and stops


@dataclass(kw_only=True)
class Stopwatch:
    """Seconds by phase of one iteration; says the phase to the tracker as it begins."""

    tracker: Tracker
    models: Models
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    cpu_began: float = field(default_factory=time.process_time)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.tracker.phase(name)
        start = time.perf_counter()
        try:
            yield
            self.models.runtime.synchronize()
            self.models.runtime.give_back()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def go_on(self, seconds: dict[str, float]) -> None:
        """Take over the phases of an iteration that was interrupted."""
        self.seconds = seconds
        self.began -= sum(seconds.values())

    def metrics(self, tokens: int) -> dict[str, float]:
        total = time.perf_counter() - self.began
        return {
            "time/iteration": total,
            "time/cpu": time.process_time() - self.cpu_began,
            **{f"time/{name}": seconds for name, seconds in self.seconds.items()},
            "throughput/tokens_per_second": tokens / total,
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the loop works with, besides the state that it changes."""

    config: TrainConfig
    models: Models
    held_out: Sequence[Prompt]
    logged: ReferenceLogprobs | None = None  # with rollout.source=offline
    tracker: Tracker
    checkpoints: CheckpointStore
    interrupts: Interrupts


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A rollout with every pass, the texts that were scored, and their raw scores."""

    rollout: Rollout
    finished: FinishedResponses
    scored: Scored


def training_loop(run: Run, state: TrainingState) -> Judgement | None:
    """Run what is left of all iterations. Returns the judgement after the last, None where there was none to make.

    `state` is fit to be saved at every moment at which this raises, except inside an optimizer step.
    """
    config, after = run.config, None
    if state.iteration == 0 and state.work is None:
        state.initial = judge(run, state, 0, initial=True)
    while state.iteration < config.training.iterations and state.health.guards.fired is None:
        watch = Stopwatch(tracker=run.tracker, models=run.models)
        if state.work is not None:
            watch.go_on(state.work.seconds)
        factor = learning_rate_factor(state.iteration, config.training.iterations, config.optimizer)
        rate = set_learning_rate(state.optimizer, factor)
        collected = collect_rollout(run, state, watch) if state.work is None else None
        with run.interrupts.deferred():
            if collected is not None:
                state.work = begin_work(config, state, collected, watch)
            work = state.work
            assert work is not None
            with watch.phase("update"):
                stats = update(
                    run.models,
                    state.optimizer,
                    work.rollout,
                    work.targets,
                    state.steered(config),
                    progress=work.progress,
                    after_minibatch=run.interrupts.check,
                    health=state.health,
                    setting=_setting(config, state, work),
                    train_policy=state.iteration >= config.value.warmup_iterations,
                )
            metrics = {**_metrics(config, state, work), **stats, "optim/learning_rate": rate}
            metrics |= watch.metrics(tokens=int(work.rollout.prompt_mask.sum() + work.rollout.response_mask.sum()))
            metrics["memory/peak_bytes"] = run.models.runtime.peak_bytes()
            iteration = state.iteration + 1
            guards = state.health.guards.after(metrics)
            due = evaluation_due(config, iteration) or guards.fired is not None
            after = judge(run, state, iteration) if due else None
            finish_iteration(state, work, guards, steer=state.iteration >= config.value.warmup_iterations)
            run.tracker.log(iteration, metrics, work.samples)
            save_if_due(run, state, after)
    if state.health.guards.fired is not None:
        run.tracker.warn(f"the run ends after {state.iteration} iterations, {state.health.guards.fired}")
    return after


def collect_rollout(run: Run, state: TrainingState, watch: Stopwatch) -> Collected:
    """Responses to the next prompts, sampled or logged, the reference's and the critic's view of them, and scores.

    Until that is complete, `state.start` is where a checkpoint would go on from.
    """
    config, models, budget = run.config, run.models, state.health.budget
    state.start = RolloutStart(prompts=state.prompts.state_dict(), random=RandomStates.capture())
    prompts = next(state.prompts)
    too_many = f"sampling {config.rollout.batch_size} responses at once does"
    lower = "lower it, generation.max_new_tokens or data.max_prompt_tokens"
    name = "generate" if prompts.logged is None else "read"
    with watch.phase(name), enough_memory("rollout.batch_size", too_many, lower):
        if prompts.logged is None:
            rollout = sample(models.policy, prompts, config.generation)
        else:
            rollout = logged_rollout(prompts, run.logged, models.runtime.device)
        finished = finished_responses(models.policy, prompts, rollout, config.generation.stop)
    sampled = rollout
    with watch.phase("forward"):
        rollout = within_memory(
            lambda tokens: add_passes(
                rollout,
                models.policy,
                models.reference,
                models.value,
                temperature=config.generation.temperature,
                token_budget=tokens,
                policy_pass=config.objective.name == "ppo",
            ),
            budget,
            rollout.microbatches,
            where="the reference's and the critic's pass",
        )
    if state.iteration == 0:
        check_first_rollout(sampled, rollout.reference_logprobs, models.policy, config, run.tracker.note)
    with watch.phase("score"):
        scores = prompts.logged.scores if prompts.logged is not None else None
        scored = (
            Scored(scores=scores)
            if scores is not None
            else within_memory(
                lambda tokens: _score(models.within(tokens), finished), budget, rollout.microbatches, where="scoring"
            )
        )
    _check_scores(run, state, scored)
    return Collected(rollout=rollout, finished=finished, scored=scored)


def begin_work(config: TrainConfig, state: TrainingState, collected: Collected, watch: Stopwatch) -> Work:
    """What the update aims at. From here on a checkpoint keeps the work."""
    rollout, raw_scores = collected.rollout, collected.scored.scores
    scores = torch.tensor(raw_scores, device=rollout.response_ids.device)  # (B,)
    state.health.unscored = 0 if bool(scores.isfinite().any()) else state.health.unscored + 1
    usable = usable_rows(rollout, scores)
    penalties = length_penalties(rollout.response_mask, config.reward)  # (B,)
    shaped = shape_scores(scores, rollout.ended, state.moments, config.objective, usable, length_penalties=penalties)
    kl_coef = state.steered(config).objective.kl_coef if config.objective.name == "ppo" else None
    targets = estimate_targets(
        rollout,
        shaped,
        config.objective,
        config.advantage,
        kl_coef=kl_coef,
        group_size=config.rollout.responses_per_prompt,
        usable=usable,
    )
    kl = None if rollout.logged else response_kl(rollout)
    samples = _samples(collected.finished, collected.scored, kl, config.tracking.samples)
    state.start = None
    return Work(
        rollout=rollout,
        targets=targets,
        scores=raw_scores,
        samples=samples,
        reward_metrics=reward_metrics(collected.scored, penalties, of="logged" if rollout.logged else "reward"),
        seconds=watch.seconds,
    )


def evaluation_due(config: TrainConfig, iteration: int) -> bool:
    """At the interval, and always after the last."""
    every = config.evaluation.every
    return iteration == config.training.iterations or (every > 0 and iteration % every == 0)


def finish_iteration(state: TrainingState, work: Work, guards: Guards, *, steer: bool) -> None:
    """`steer`: by this rollout's KL; there is none while the critic alone learns, and of logged responses."""
    if steer and not work.rollout.logged:
        kl = response_kl(sound_part(work.rollout))  # (B,)
        if len(kl) and bool(kl.isfinite().all()):
            state.steer(kl.mean().item(), len(kl))
    state.health.guards = guards
    state.iteration += 1
    state.work = None


def save_if_due(run: Run, state: TrainingState, after: Judgement | None) -> None:
    """At the interval, after the last iteration, and where the evaluation is the best so far."""
    checkpoints = run.checkpoints
    improved = after is not None and checkpoints.improves(after.metrics)
    if improved or checkpoints.due(state.iteration, run.config.training.iterations):
        run.tracker.phase("save")
        saved = checkpoints.save(run.models, state)
        if saved is not None and improved and after is not None:
            checkpoints.mark_best(saved, after.metrics)


def judge_initial_again(run: Run, state: TrainingState) -> None:
    """For a run that goes on without a judgement of its initial policy, or with one of another time's prompts."""
    known = state.initial
    if not run.held_out or (state.iteration == 0 and state.work is None):
        return
    if known is not None and known.opponents and [r.prompt for r in known.responses] == [p.text for p in run.held_out]:
        return
    if run.config.reference.path is not None:
        state.initial = None
        run.tracker.warn("the checkpoint has no evaluation of the initial policy on these prompts: no win rates")
        return
    with run.models.reference.active() as start:
        run.tracker.note("evaluating the initial policy again: the checkpoint has no such evaluation on these prompts")
        again = replace(run, models=replace(run.models, policy=start))
        state.initial = judge(again, state, 0, initial=True, log=False)


def judge(
    run: Run, state: TrainingState, iteration: int, *, initial: bool = False, log: bool = True
) -> Judgement | None:
    """Evaluate on held-out prompts, against the `initial` policy's responses, and log it; None without prompts."""
    if not run.held_out:
        return None
    opponents = None if initial else state.initial.opponents if state.initial is not None else []
    run.tracker.phase("evaluate")
    with run.interrupts.immediate():
        judgement = within_memory(
            lambda tokens: evaluate(
                run.models.within(tokens), run.held_out, run.config, opponents, token_budget=tokens
            ),
            state.health.budget,
            lambda tokens: [range(tokens)],  # what it will sample cannot be planned yet
            where="the evaluation",
        )
    for name, key in (("reward", "eval/unscored"), ("evaluator", "eval/evaluator_unscored")):
        if key in judgement.metrics:
            count = f"{judgement.metrics[key] * len(run.held_out):.0f} of {len(run.held_out)} responses have no score"
            after = "so it is missing" if judgement.metrics[key] == 1 else "and are left out"
            run.tracker.warn(f"evaluation after iteration {iteration}: eval/{name}: {count}, {after}")
    if log:
        samples = [
            Sample(
                prompt=r.prompt, response=r.response, score=r.score, kl=r.kl, evaluator=r.evaluator, parts=r.score_parts
            )
            for r in judgement.responses[: run.config.tracking.samples]
        ]
        run.tracker.log_evaluation(iteration, judgement.metrics, samples)
    return judgement


def _metrics(config: TrainConfig, state: TrainingState, work: Work) -> dict[str, float]:
    """Of the rollout, where it is finite."""
    scores = torch.tensor([score for score in work.scores if isfinite(score)])
    rollout, usable = work.rollout, work.targets.usable
    sound = rollout if usable is None else sound_part(rollout)
    moments = scores.mean().item(), scores.std(correction=0).item() if len(scores) else nan
    if rollout.logged:  # of the data: nothing here says how the policy does
        metrics = dict(zip(("logged/score_mean", "logged/score_std"), moments, strict=True)) | logged_statistics(sound)
    else:
        metrics = dict(zip(("reward/mean", "reward/std"), moments, strict=True)) | rollout_statistics(sound)
    metrics |= work.reward_metrics
    if rollout.values is not None and work.targets.returns is not None:
        mask = rollout.response_mask if usable is None else rollout.response_mask & usable[:, None]
        variance = explained_variance(rollout.values, work.targets.returns, mask)
        metrics["value/explained_variance"] = float(variance)
    objective = state.steered(config).objective
    if objective.name == "ppo":
        metrics["objective/kl_coef"] = objective.kl_coef
    else:
        metrics["objective/kl_lambda"] = objective.own_lambda
    return metrics


def _setting(config: TrainConfig, state: TrainingState, work: Work) -> str:
    """Where the run stands, in the words of a diagnosis."""
    objective = state.steered(config).objective
    knob = f"β {objective.kl_coef:g}" if objective.name == "ppo" else f"λ {objective.own_lambda:g}"
    return describe_setting(state.iteration + 1, knob, torch.tensor(work.scores))


def reward_metrics(scored: Scored, penalties: Tensor | None, *, of: str = "reward") -> dict[str, float]:
    """`of`/…: mean and deviation of each of several rewards where it is finite, and the mean length penalty."""
    metrics: dict[str, float] = {}
    for name, part in scored.parts.items():
        finite = torch.tensor([value for value in part if isfinite(value)])
        metrics[f"{of}/{name}"] = finite.mean().item()
        metrics[f"{of}/{name}_std"] = finite.std(correction=0).item() if len(finite) else nan
    if penalties is not None:
        metrics[f"{of}/length_penalty"] = penalties.mean().item()
    return metrics


def _check_scores(run: Run, state: TrainingState, scored: Scored) -> None:
    """Say how many responses have no score. Raises UserError where none has had one for UNSCORED_LIMIT iterations.

    The count then begins anew, and a run that goes on from there draws this rollout once more.
    """
    missing = [row for row, score in enumerate(scored.scores) if not isfinite(score)]
    if not missing:
        return
    assert run.models.scorer is not None  # logged scores are finite
    said, total = complaint(run.models.scorer, scored, missing[0]), len(scored.scores)
    if len(missing) == total and state.health.unscored + 1 >= UNSCORED_LIMIT:
        state.health.unscored = 0
        problem = f"{said.problem}, and no response has had a score for {UNSCORED_LIMIT} iterations in a row"
        raise UserError(said.where, problem, said.remedy)
    count = f"{len(missing)} of {total} responses have no score and are left out"
    if len(missing) == total:
        count = f"none of the {total} responses has a score, so there is no step"
    run.tracker.warn(f"iteration {state.iteration + 1}: {said}; {count}")


def _score(models: Models, finished: FinishedResponses) -> Scored:
    assert models.scorer is not None  # config.needs_reward
    return score(models.scorer, finished)


def _samples(finished: FinishedResponses, scored: Scored, kl: Tensor | None, count: int) -> list[Sample]:
    kls = [None] * len(scored.scores) if kl is None else kl.tolist()
    rows = zip(finished.prompts, finished.responses, scored.scores, kls, strict=True)
    return [
        Sample(prompt=p, response=r, score=s, kl=k, parts=scored.parts_of(row))
        for row, (p, r, s, k) in zip(range(count), rows, strict=False)
    ]
