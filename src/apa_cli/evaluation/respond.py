"""Sample one response per held-out prompt and measure it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from apa_cli.algorithms import exact_kl, kl_k3, per_response
from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt, collate
from apa_cli.models.device import Runtime
from apa_cli.models.microbatches import pass_tokens
from apa_cli.models.policy import Policy
from apa_cli.models.reference import Reference
from apa_cli.models.roles import Models
from apa_cli.rewards.scorers import Scorers, require_scores, score
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.sources import Sampled
from apa_cli.rollouts.trajectory import Trajectory

CHUNK = 128  # tokens whose logits are computed together
RESPONSES, OPPONENTS = 0, 1  # random streams: of judged responses, and of the initial policy's in comparisons
SEED_OFFSET = 0x5EED  # evaluation always draws the same random numbers


@dataclass(frozen=True, kw_only=True)
class JudgedResponse:
    """A response and its metrics. KL and entropy are in nats, summed over its counted tokens."""

    prompt: str
    response: str
    token_ids: tuple[int, ...]  # counted response tokens
    ended: bool
    score: float  # under the training reward
    evaluator: float | None  # under the separate evaluator
    score_parts: dict[str, float] = field(default_factory=dict)  # of several rewards, by name, without weights
    evaluator_parts: dict[str, float] = field(default_factory=dict)
    kl: float  # k1 of the tokens drawn
    kl_k3: float
    kl_exact: float  # over the whole vocabulary at every position
    entropy: float


def respond(
    models: Models,
    scorers: Scorers,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    *,
    stream: int = RESPONSES,
    token_budget: int | None = None,
    lenient: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[JudgedResponse]:
    """Draw one response per prompt, always with the same random numbers, and measure it.

    Another `stream` gives other numbers: two policies compared on one stream would draw the same responses where
    they agree, and a policy compared with itself would only tie. `progress` hears how many prompts are done. The
    caller's random states are left as they were. `token_budget` stands in for training.microbatch_tokens.

    Raises UserError, unless `lenient`, where a batch of them has no finite score at all.
    """
    judged: list[JudgedResponse] = []
    with own_random_states(config.seed + SEED_OFFSET + stream, models.runtime):
        for start in range(0, len(prompts), config.rollout.batch_size):
            batch = prompts[start : start + config.rollout.batch_size]
            budget = token_budget or config.training.microbatch_tokens
            judged += _respond_batch(models, scorers, batch, config, budget, lenient)
            if progress is not None:
                progress(len(judged))
    return judged


@contextlib.contextmanager
def own_random_states(seed: int, runtime: Runtime) -> Iterator[None]:
    """Seed torch, Python and NumPy, and restore their states at the end."""
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


def _respond_batch(
    models: Models, scorers: Scorers, prompts: Sequence[Prompt], config: TrainConfig, budget: int, lenient: bool
) -> list[JudgedResponse]:
    greedy = config.evaluation.decoding == "greedy"
    source = Sampled(replace(models, value=None), config, Attendant(budget), greedy=greedy)
    trajectory = source.collect(collate(prompts, models.policy.pad_token_id))
    finished = trajectory.texts
    assert finished is not None and scorers.reward is not None  # config.needs_reward
    scored = score(scorers.reward, finished)
    judged = score(scorers.evaluator, finished) if scorers.evaluator is not None else None
    if not lenient:
        require_scores(scorers.reward, scored)
        if scorers.evaluator is not None and judged is not None:
            require_scores(scorers.evaluator, judged)
    mask = trajectory.response_mask
    assert trajectory.reference_logprobs is not None
    logprobs, entropies = trajectory.sampled
    k1 = trajectory.kl.tolist()
    k3 = per_response(kl_k3(logprobs, trajectory.reference_logprobs, mask), mask).tolist()
    temperature = config.generation.temperature
    exact = response_exact_kl(
        trajectory, models.policy, models.reference, temperature=temperature, token_budget=budget
    ).tolist()
    entropy = per_response(entropies, mask).tolist()
    ids = trajectory.response_token_ids()
    return [
        JudgedResponse(
            prompt=finished.prompts[i],
            response=finished.responses[i],
            token_ids=tuple(ids[i]),
            ended=bool(trajectory.ended[i]),
            score=scored.scores[i],
            evaluator=judged.scores[i] if judged is not None else None,
            score_parts=scored.parts_of(i),
            evaluator_parts=judged.parts_of(i) if judged is not None else {},
            kl=k1[i],
            kl_k3=k3[i],
            kl_exact=exact[i],
            entropy=entropy[i],
        )
        for i in range(len(scored.scores))
    ]


@torch.no_grad()
def response_exact_kl(
    rollout: Trajectory, policy: Policy, reference: Reference, *, temperature: float, token_budget: int
) -> Tensor:
    """Σ_t KL(π_θ(·|s_t) ‖ π_ref(·|s_t)) along each response, over the whole vocabulary: (B,) nats.

    Its mean over responses drawn from π_θ is KL(π_θ ‖ π_ref) of whole responses, with less noise than k1's.
    """
    total = torch.zeros(len(rollout.response_ids), device=rollout.response_ids.device)  # (B,)
    for rows in rollout.microbatches(pass_tokens(token_budget, rollout.response_ids.device.type)):
        part = rollout.select(rows)
        ours = policy.counted_logits(part.batch)
        with reference.active() as frozen:
            theirs = frozen.counted_logits(part.batch)
        kl = torch.zeros_like(part.response_mask, dtype=torch.float32)  # (b, T)
        found = []
        for start in range(0, int(part.response_mask.sum()), CHUNK):
            tokens = slice(start, start + CHUNK)
            with reference.active():
                other = theirs(tokens)  # (n, V)
            found.append(exact_kl(ours(tokens)[None], other[None], temperature=temperature)[0])
        kl[part.response_mask] = torch.cat(found).to(kl.dtype)
        total[rows] = per_response(kl, part.response_mask)
    return total
