"""`apa-eval`: compare checkpoints with the initial policy on the same held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from apa_cli.checkpoints.manifest import MANIFEST, listed_only
from apa_cli.config.schema import AdapterConfig, PolicyConfig, TrainConfig
from apa_cli.data.loading import load_prompts
from apa_cli.data.prompts import PromptSet, check_room
from apa_cli.data.table import Progress
from apa_cli.errors import UserError
from apa_cli.evaluation.bootstrap import Estimate
from apa_cli.evaluation.checkpoint_paths import KEY, EvaluatedCheckpoint
from apa_cli.evaluation.endpoint import EndpointJudge
from apa_cli.evaluation.measures import measure, verdict_rates
from apa_cli.evaluation.pairwise import Pair
from apa_cli.evaluation.respond import OPPONENTS, RESPONSES, JudgedResponse, respond
from apa_cli.models.device import Runtime, select_runtime
from apa_cli.models.policy import Policy
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.reference import Reference, load_reference
from apa_cli.models.roles import Models
from apa_cli.rewards.function import check_functions
from apa_cli.rewards.http import probe_served
from apa_cli.rewards.math import check_answers
from apa_cli.rewards.preview import check_templates
from apa_cli.rewards.scorers import Scorers, by_role, load_scorers
from apa_cli.rollouts.agreement import check_agreement


@dataclass(frozen=True, kw_only=True)
class EvaluatedPolicy:
    """One row of the table."""

    name: str
    iteration: int | None
    path: str
    run_dir: Path | None = None
    figures: dict[str, Estimate]
    responses: list[JudgedResponse]
    judge: dict[str, Any] | None = None  # summary of the endpoint judge


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    policies: list[EvaluatedPolicy]  # the initial policy first
    opponents: list[JudgedResponse]  # the initial policy's other responses, for win rates
    prompts: str  # in words
    rows: list[str]  # places of the prompts in their file
    reference: str | None  # of the KL, if it is not the initial policy
    decoding: str
    seed: int
    seconds: float
    folder: Path | None = None  # where it was written


def evaluate_checkpoints(
    checkpoints: Sequence[EvaluatedCheckpoint], config: TrainConfig, progress: Progress
) -> Evaluation:
    """Evaluate on `config.evaluation.prompts` held-out prompts. Deterministic for a seed; writes nothing.

    Raises UserError for checkpoints, prompts, rewards or an endpoint that do not work.
    """
    started = time.perf_counter()
    if config.evaluation.prompts == 0:
        raise UserError("evaluation.prompts", "0, so there is nothing to evaluate on", "set it, for instance to 128")
    runtime = select_runtime(config.device, config.precision)
    probe_served(config)
    modules = check_functions(config)
    check_answers(config)
    judge = EndpointJudge(config.evaluation.judge) if config.evaluation.judge.base_url is not None else None
    intervals = {"resamples": config.evaluation.resamples, "seed": config.seed}
    frozen: Reference | None = None
    policies: list[EvaluatedPolicy] = []
    opponents: list[JudgedResponse] = []

    def draw(name: str, policy: Policy, reference: Reference, stream: int = RESPONSES) -> list[JudgedResponse]:
        models = Models(policy=policy, reference=reference, value=None, runtime=runtime)
        total = len(held_out.prompts)
        progress(name, 0, total)
        return respond(
            models, scorers, held_out.prompts, config, stream=stream, progress=lambda done: progress(name, done, total)
        )

    for checkpoint in checkpoints:
        progress(f"loading {checkpoint.name}", 0, 0)
        policy, reference = _load(checkpoint, config, runtime, frozen)
        check_agreement(policy, reference, None, config, key=KEY)
        frozen = None if reference.shares_weights else reference
        if not policies:
            held_out, scorers = _prepare(config, policy, runtime, progress, modules)
            with _initial(config, reference, runtime) as (initial, its_reference):
                opponents = draw("initial policy", initial, its_reference, OPPONENTS)
                responses = draw("initial policy", initial, its_reference)
            policies.append(
                EvaluatedPolicy(
                    name="initial",
                    iteration=0,
                    path=config.policy.adapter.path or config.policy.path,
                    responses=responses,
                    figures=measure(responses, opponents, **intervals),
                )
            )
        responses = draw(checkpoint.name, policy, reference)
        figures = measure(responses, opponents, **intervals)
        account = None
        if judge is not None:
            pairs = [
                Pair(prompt=ours.prompt, checkpoint=ours.response, initial=theirs.response)
                for ours, theirs in zip(responses, opponents, strict=True)
            ]
            verdicts, account = judge.judge(pairs, partial(progress, f"endpoint judge, {checkpoint.name}"))
            if verdicts:
                figures |= verdict_rates("judge_", [verdict.outcome for verdict in verdicts], **intervals)
        policies.append(
            EvaluatedPolicy(
                name=checkpoint.name,
                iteration=checkpoint.iteration,
                path=checkpoint.policy,
                run_dir=checkpoint.run_dir,
                figures=figures,
                responses=responses,
                judge=account,
            )
        )
    return Evaluation(
        policies=policies,
        opponents=opponents,
        prompts=held_out.describe(),
        rows=[prompt.place for prompt in held_out.prompts],
        reference=config.reference.path,
        decoding=config.evaluation.decoding,
        seed=config.seed,
        seconds=time.perf_counter() - started,
    )


def _prepare(
    config: TrainConfig, policy: Policy, runtime: Runtime, progress: Progress, modules: dict[str, ModuleType]
) -> tuple[PromptSet, Scorers]:
    _, held_out = load_prompts(
        config.data,
        policy.tokenizer,
        evaluation_prompts=config.evaluation.prompts,
        seed=config.seed,
        progress=progress,
    )
    check_room(
        held_out.prompts,
        max_new_tokens=config.generation.max_new_tokens,
        room=policy.room,
        known=policy.known_ids,
        tokenizer=policy.tokenizer,
        model="policy",
    )
    scorers = load_scorers(config, policy, runtime, modules=modules)
    check_templates(held_out, {**by_role("reward", scorers.reward), **by_role("evaluator", scorers.evaluator)})
    return held_out, scorers


def _load(
    checkpoint: EvaluatedCheckpoint, config: TrainConfig, runtime: Runtime, frozen: Reference | None
) -> tuple[Policy, Reference]:
    """The checkpoint's policy and the initial policy that its KL is measured from."""
    settings = _settings(config.policy, checkpoint)
    weights = Path(checkpoint.policy)
    if (weights.parent / MANIFEST).is_file():
        weights = listed_only(weights.parent) / weights.name
    policy = load_policy(settings, runtime, weights=weights, stop_tokens=config.generation.stop_tokens)
    if frozen is not None and not checkpoint.is_adapter:
        with frozen.active() as initial:
            sizes = {len(either.model.get_output_embeddings().weight) for either in (initial, policy)}
        if len(sizes) > 1:
            problem = f"{checkpoint.policy} has another vocabulary than the initial policy"
            raise UserError(KEY, problem, "the two must share a tokenizer")
        return policy, frozen
    if config.reference.path is None and not checkpoint.is_adapter and config.policy.adapter.path is not None:
        # all weights are compared with a start that was an adapter itself
        start = load_policy(config.policy, runtime, stop_tokens=config.generation.stop_tokens)
        return policy, Reference(start, frozen=start)
    return policy, load_reference(config.reference, settings, policy, runtime, trained=checkpoint.policy)


@contextmanager
def _initial(config: TrainConfig, reference: Reference, runtime: Runtime) -> Iterator[tuple[Policy, Reference]]:
    """The initial policy and the reference of its KL: itself, unless reference.path is set."""
    if config.reference.path is not None:
        yield load_policy(config.policy, runtime, stop_tokens=config.generation.stop_tokens), reference
        return
    with reference.active() as start:
        yield start, Reference(start, frozen=start)


def _settings(config: PolicyConfig, checkpoint: EvaluatedCheckpoint) -> PolicyConfig:
    """The policy's settings, with an adapter if the checkpoint has one."""
    if checkpoint.is_adapter == config.adapter.enabled:
        return config
    adapter = AdapterConfig(r=1) if checkpoint.is_adapter else AdapterConfig()  # its rank comes with its weights
    return replace(config, adapter=adapter)
