"""Sources of trajectories: sampled by the policy or logged in data, with every pass that learning needs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import PromptBatch
from apa_cli.models.layout import rows_of_groups
from apa_cli.models.microbatches import pass_tokens
from apa_cli.models.policy import Policy
from apa_cli.models.reference import Reference
from apa_cli.models.roles import Models
from apa_cli.models.value import Value, hidden_size
from apa_cli.rewards.record import FinishedResponses
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.generation import decode, raw_texts, sample, spoken_ids
from apa_cli.rollouts.reference_logprobs import ReferenceLogprobs
from apa_cli.rollouts.trajectory import Trajectory


class Source(Protocol):
    def collect(self, prompts: PromptBatch) -> Trajectory:
        """A response to each prompt, with rollout and reference log-probs, values and texts."""


class Sampled:
    """Responses of the current policy.

    policy_pass: recompute the rollout's log-probs with a plain forward pass. PPO divides by them, and sampling with a
    cache rounds differently. packed: forward passes compute the prompt of a group once.
    """

    def __init__(
        self,
        models: Models,
        config: TrainConfig,
        attendant: Attendant,
        *,
        policy_pass: bool = False,
        greedy: bool = False,
        packed: bool = False,
    ) -> None:
        self.models, self.config, self.attendant = models, config, attendant
        self.policy_pass, self.greedy, self.packed = policy_pass, greedy, packed

    def collect(self, prompts: PromptBatch) -> Trajectory:
        policy, config = self.models.policy, self.config.generation
        with self.attendant.phase("generate"):
            drawn = sample(policy, prompts, config, greedy=self.greedy)
            texts = finished_responses(policy, prompts, drawn, config.stop)
        if self.packed:
            drawn = in_packed_rows(drawn, self.models, self.config.rollout.responses_per_prompt)
        with self.attendant.phase("forward"):
            trajectory = passes(drawn, self.models, self.config, self.attendant, policy_pass=self.policy_pass)
        self.attendant.sampled(drawn, trajectory)
        return replace(trajectory, texts=texts)


class Logged:
    """Responses from data. Nothing is sampled, and the rollout log-probs are unknown."""

    def __init__(self, models: Models, config: TrainConfig, attendant: Attendant, reference: ReferenceLogprobs) -> None:
        self.models, self.config, self.attendant, self.reference = models, config, attendant, reference

    def collect(self, prompts: PromptBatch) -> Trajectory:
        assert prompts.logged is not None
        with self.attendant.phase("read"):
            logged = logged_responses(prompts, self.reference, self.models.runtime.device)
            texts = finished_responses(self.models.policy, prompts, logged, self.config.generation.stop)
        with self.attendant.phase("forward"):
            trajectory = passes(logged, self.models, self.config, self.attendant)
        scores = prompts.logged.scores
        if scores is None:
            return replace(trajectory, texts=texts)
        given = torch.tensor(scores, dtype=torch.float64, device=self.models.runtime.device)  # (B,)
        return replace(trajectory, texts=texts, scores=given)


def in_packed_rows(trajectory: Trajectory, models: Models, group_size: int) -> Trajectory:
    """The trajectory of groups that stand side by side, for passes in the packed layout."""
    lengths = trajectory.prompt_mask.sum(dim=1), trajectory.response_mask.sum(dim=1)  # (B,)
    width, longest = hidden_size(models.policy.model), models.longest_row()
    return replace(trajectory, packed_rows=rows_of_groups(*lengths, group_size, width=width, longest=longest))


def logged_responses(prompts: PromptBatch, reference: ReferenceLogprobs | None, device: torch.device) -> Trajectory:
    """The logged responses to `prompts`, with their cached reference log-probs."""
    logged = prompts.logged
    assert logged is not None
    mask = logged.response_mask
    rectangle: Tensor | None = None
    if reference is not None:
        rectangle = torch.zeros(mask.shape)  # (B, T)
        for row, index in enumerate(logged.indices):
            logprobs = reference.of(index)
            rectangle[row, : len(logprobs)] = logprobs
        rectangle = rectangle.to(device)
    return Trajectory(
        prompt_ids=prompts.prompt_ids.to(device),
        prompt_mask=prompts.prompt_mask.to(device),
        response_ids=logged.response_ids.to(device),
        response_mask=mask.to(device),
        ended=logged.ended.to(device),
        reference_logprobs=rectangle,
    )


def passes(
    trajectory: Trajectory, models: Models, config: TrainConfig, attendant: Attendant, *, policy_pass: bool = False
) -> Trajectory:
    """The trajectory with values and, if it has none yet, reference log-probs."""
    return attendant.fit(
        lambda tokens: add_passes(
            trajectory,
            models.policy,
            models.reference,
            models.value,
            temperature=config.generation.temperature,
            token_budget=tokens,
            policy_pass=policy_pass,
        ),
        trajectory.microbatches,
        where="the reference's and the critic's pass",
    )


@torch.no_grad()
def add_passes(
    trajectory: Trajectory,
    policy: Policy,
    reference: Reference,
    value: Value | None,
    *,
    temperature: float,
    token_budget: int,
    policy_pass: bool,
) -> Trajectory:
    """`passes` in micro-batches, without gradients. A shared critic reads the policy's hidden states."""
    made: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for rows in trajectory.microbatches(pass_tokens(token_budget, trajectory.response_ids.device.type)):
        batch = trajectory.select(rows).batch
        found: dict[str, Tensor] = {}
        hidden = None
        if policy_pass:
            found["rollout_logprobs"], hidden = policy.logprobs(batch, temperature=temperature)
        if value is not None:
            if value.reads_policy and hidden is None:
                hidden = policy.hidden_states(batch)
            found["values"] = value(batch, hidden=hidden)
        if trajectory.reference_logprobs is None:
            found["reference_logprobs"] = reference.logprobs(batch, temperature=temperature)
        for name, tensor in found.items():
            made.setdefault(name, []).append((rows, tensor))
    return replace(trajectory, **{name: _assemble(trajectory, pieces) for name, pieces in made.items()})  # type: ignore[arg-type]


def finished_responses(
    policy: Policy, prompts: PromptBatch, trajectory: Trajectory, stop: list[str]
) -> FinishedResponses:
    """The texts and columns that rewards read."""
    texts, asked = decode(policy, trajectory, stop), trajectory.prompt_token_ids()
    return FinishedResponses(
        prompts=prompts.texts,
        responses=texts,
        messages=prompts.messages,
        columns=prompts.columns,
        token_ids=[p + r for p, r in zip(asked, spoken_ids(policy, trajectory, texts), strict=True)],
        prompt_lengths=[len(ids) for ids in asked],
        ended=trajectory.ended.tolist(),
        response_ids=trajectory.response_token_ids(),
        raw=partial(raw_texts, policy, trajectory),
        closing=policy.closing_token(chat=prompts.messages is not None),
        torn=prompts.torn,
    )


def _assemble(trajectory: Trajectory, pieces: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(B, T) from rows trimmed to their own length; 0 where masked."""
    whole = torch.zeros_like(trajectory.response_mask, dtype=torch.float32)  # (B, T)
    for rows, piece in pieces:
        whole[rows, : piece.shape[1]] = piece.float()
    return torch.where(trajectory.response_mask, whole, 0.0)
