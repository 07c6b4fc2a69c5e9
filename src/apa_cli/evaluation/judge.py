"""A policy judged on held-out prompts: scores, KL to the initial policy, entropy, diversity."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt, collate
from apa_cli.models.device import Runtime
from apa_cli.models.reward import FinishedResponses
from apa_cli.models.roles import Models
from apa_cli.rollouts.collect import add_passes, finished_responses
from apa_cli.rollouts.generation import sample
from apa_cli.rollouts.statistics import distinct_n, response_kl

SEED_OFFSET = 0x5EED  # evaluation draws from its own stream, the same one every time


@dataclass(frozen=True, kw_only=True)
class JudgedResponse:
    prompt: str
    response: str
    score: float
    kl: float
    evaluator: float | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    metrics: dict[str, float]  # eval/*
    responses: list[JudgedResponse]  # one per prompt, in their order


def evaluate(models: Models, prompts: Sequence[Prompt], config: TrainConfig) -> Judgement:
    """Sample one response per prompt and judge it. Training's random state is left as it was."""
    with _own_random_states(config.seed + SEED_OFFSET, models.runtime):
        batches = [
            _judge_batch(models, prompts[start : start + config.rollout.batch_size], config)
            for start in range(0, len(prompts), config.rollout.batch_size)
        ]
    responses = [response for judged, _ in batches for response in judged]
    tokens = [ids for _, facts in batches for ids in facts.token_ids]
    counted = sum(len(ids) for ids in tokens)
    metrics = {
        "eval/reward": _mean([r.score for r in responses]),
        "eval/kl": _mean([r.kl for r in responses]),
        "eval/entropy": sum(facts.entropy_sum for _, facts in batches) / max(1, counted),
        "eval/response_length": counted / len(responses),
        "eval/eos_rate": sum(facts.ended for _, facts in batches) / len(responses),
        "eval/unique_fraction": len({tuple(ids) for ids in tokens}) / len(tokens),
        "eval/distinct_2": distinct_n(tokens, 2),
    }
    judged = [r.evaluator for r in responses if r.evaluator is not None]
    if judged:
        metrics["eval/evaluator"] = _mean(judged)
    return Judgement(metrics=metrics, responses=responses)


@contextlib.contextmanager
def _own_random_states(seed: int, runtime: Runtime) -> Iterator[None]:
    """Seed torch, Python and NumPy (reward functions may draw from any), and put their states back in the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[runtime.device] if runtime.device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@dataclass(frozen=True, kw_only=True)
class _BatchFacts:
    token_ids: list[list[int]]  # counted response tokens
    entropy_sum: float
    ended: int


def _judge_batch(
    models: Models, prompts: Sequence[Prompt], config: TrainConfig
) -> tuple[list[JudgedResponse], _BatchFacts]:
    batch = collate(prompts, models.policy.pad_token_id)
    rollout = add_passes(
        sample(models.policy, batch, config.generation),
        models.policy,
        models.reference,
        None,
        temperature=config.generation.temperature,
        token_budget=config.training.microbatch_tokens,
        policy_pass=False,
    )
    finished: FinishedResponses = finished_responses(models.policy, batch, rollout, config.generation.stop)
    scores = models.scorer(finished)
    evaluator = models.evaluator(finished) if models.evaluator else [None] * len(scores)
    kls = response_kl(rollout).tolist()
    judged = [
        JudgedResponse(prompt=p, response=r, score=s, kl=k, evaluator=e)
        for p, r, s, k, e in zip(finished.prompts, finished.responses, scores, kls, evaluator, strict=True)
    ]
    ids = [
        row[keep].tolist() for row, keep in zip(rollout.response_ids.cpu(), rollout.response_mask.cpu(), strict=True)
    ]
    return judged, _BatchFacts(token_ids=ids, entropy_sum=rollout.entropy.sum().item(), ended=int(rollout.ended.sum()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
