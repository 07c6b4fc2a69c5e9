"""`apa-eval`: compare checkpoints with the initial policy on the same held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from apa_cli.checkpoints.manifest import MANIFEST, listed_only
from apa_cli.config.schema import AdapterConfig, PolicyConfig, TrainConfig
from apa_cli.data.loading import load_prompts
from apa_cli.data.prompts import Prompt, check_room
from apa_cli.data.table import Progress
from apa_cli.errors import UserError
from apa_cli.evaluation.bootstrap import Estimate
from apa_cli.evaluation.checkpoint_paths import KEY, EvaluatedCheckpoint
from apa_cli.evaluation.endpoint.client import EndpointJudge
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
from apa_cli.rewards.scorers import Scorers, load_scorers
from apa_cli.rewards.weighted import by_role
from apa_cli.rollouts.agreement import check_agreement

OUTCOMES = {"win": 1, "tie": 0, "lose": -1}


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


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What all checkpoints share."""

    scorers: Scorers
    prompts: Sequence[Prompt]
    config: TrainConfig
    progress: Progress

    def respond(self, name: str, policy: Policy, reference: Reference, stream: int = RESPONSES) -> list[JudgedResponse]:
        self.progress(name, 0, len(self.prompts))
        return respond(
            Models(policy=policy, reference=reference, value=None, runtime=policy.runtime),
            self.scorers,
            self.prompts,
            self.config,
            stream=stream,
            progress=lambda done: self.progress(name, done, len(self.prompts)),
        )

    def measure(self, responses: list[JudgedResponse], opponents: list[JudgedResponse]) -> dict[str, Estimate]:
        return measure(responses, opponents, resamples=self.config.evaluation.resamples, seed=self.config.seed)


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
    bench: _Bench | None = None
    frozen: Reference | None = None
    policies: list[EvaluatedPolicy] = []
    opponents: list[JudgedResponse] = []
    described = ""
    for checkpoint in checkpoints:
        progress(f"loading {checkpoint.name}", 0, 0)
        policy, reference = _load(checkpoint, config, runtime, frozen)
        check_agreement(policy, reference, None, config, key=KEY, training=False)
        frozen = None if reference.shares_weights else reference
        if bench is None:
            bench, described = _prepare(config, policy, runtime, progress, modules)
            with _initial(config, reference, runtime) as (initial, its_reference):
                opponents = bench.respond("initial policy", initial, its_reference, stream=OPPONENTS)
                responses = bench.respond("initial policy", initial, its_reference)
            policies.append(
                EvaluatedPolicy(
                    name="initial",
                    iteration=0,
                    path=config.policy.adapter.path or config.policy.path,
                    responses=responses,
                    figures=bench.measure(responses, opponents),
                )
            )
        responses = bench.respond(checkpoint.name, policy, reference)
        figures = bench.measure(responses, opponents)
        account = None
        if judge is not None:
            rates, account = _ask(judge, responses, opponents, config, checkpoint.name, progress)
            figures |= rates
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
        prompts=described,
        rows=[prompt.place for prompt in bench.prompts] if bench is not None else [],
        reference=config.reference.path,
        decoding=config.evaluation.decoding,
        seed=config.seed,
        seconds=time.perf_counter() - started,
    )


def _prepare(
    config: TrainConfig, policy: Policy, runtime: Runtime, progress: Progress, modules: dict[str, ModuleType]
) -> tuple[_Bench, str]:
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
    bench = _Bench(
        scorers=load_scorers(config, policy, runtime, modules=modules),
        prompts=held_out.prompts,
        config=config,
        progress=progress,
    )
    check_templates(
        held_out, {**by_role("reward", bench.scorers.reward), **by_role("evaluator", bench.scorers.evaluator)}
    )
    return bench, held_out.describe()


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
            if _vocabulary(initial) != _vocabulary(policy):
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


def _vocabulary(policy: Policy) -> int:
    return int(policy.model.get_output_embeddings().weight.shape[0])


def _settings(config: PolicyConfig, checkpoint: EvaluatedCheckpoint) -> PolicyConfig:
    """The policy's settings, with an adapter if the checkpoint has one."""
    if checkpoint.is_adapter and not config.adapter.enabled:
        return replace(config, adapter=AdapterConfig(r=1))  # its own rank comes with its weights
    if not checkpoint.is_adapter and config.adapter.enabled:
        return replace(config, adapter=AdapterConfig())
    return config


def _ask(
    judge: EndpointJudge,
    responses: Sequence[JudgedResponse],
    opponents: Sequence[JudgedResponse],
    config: TrainConfig,
    name: str,
    progress: Progress,
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    pairs = [
        Pair(prompt=ours.prompt, checkpoint=ours.response, initial=theirs.response)
        for ours, theirs in zip(responses, opponents, strict=True)
    ]
    verdicts = judge.judge(pairs, lambda done, total: progress(f"endpoint judge, {name}", done, total))
    outcomes = [OUTCOMES[verdict.outcome] for verdict in verdicts]
    if not outcomes:
        return {}, asdict(judge.summary())
    rates = verdict_rates("judge_", outcomes, resamples=config.evaluation.resamples, seed=config.seed)
    return rates, asdict(judge.summary())
