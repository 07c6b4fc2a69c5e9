"""The decode loop of the backends that run the policy's own forward.

Tokens, log-probs and entropy come from one softmax; rows that have ended leave the batch; prompts of very
different lengths are decoded in batches of like length, and where memory is to stay bounded, one group of rows after
the other. None of it changes what is drawn: the random numbers of a row and a step are the same however rows are
batched and grouped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from apa_cli.config import schema
from apa_cli.models.policy import Policy
from apa_cli.rollouts.backends.cached import DecodingBatch
from apa_cli.rollouts.backends.choice import TokenChooser
from apa_cli.rollouts.backends.ends import Ends
from apa_cli.rollouts.trajectory import Trajectory

CHECK_EVERY = 16  # steps between looks at what has ended on a GPU, where each look waits for the device


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are decoded at the same time; their caches are gone before the next group's are made."""

    rows: Tensor  # (n,) which of the B
    batches: Sequence[DecodingBatch]  # each with its rows among these n


def decode_loop(
    policy: Policy,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    groups: Iterable[Group],
    config: schema.GenerationConfig,
    *,
    greedy: bool,
) -> Trajectory:
    """Generate for the rows of all `groups`, with the global random state.

    What is drawn, and the random state in the end, are those of all rows in one group.
    """
    device, B, T = prompt_ids.device, len(prompt_ids), config.max_new_tokens
    choose = TokenChooser(config, policy.eos_token_ids, greedy=greedy)
    stream = _Stream(device)
    response_ids = torch.full((B, T), policy.pad_token_id, device=device)
    logprobs = torch.zeros(B, T, device=device)
    entropy = torch.zeros(B, T, device=device)
    lengths = torch.zeros(B, dtype=torch.long, device=device)  # 0 = not ended
    for group in groups:
        with stream.replayed() as replay:
            ends, replay.steps, *columns = _decode(policy, choose, group, B, config)
        lengths[group.rows] = ends.lengths
        for whole, part in zip((response_ids, logprobs, entropy), columns, strict=True):
            whole[group.rows] = part
    stream.finish()
    steps = stream.steps
    counted = torch.where(lengths > 0, lengths, steps)  # (B,)
    T = int(counted.max())
    response_mask = torch.arange(T, device=device) < counted[:, None]
    return Trajectory(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids[:, :T],
        response_mask=response_mask,
        ended=lengths > 0,
        rollout_logprobs=torch.where(response_mask, logprobs[:, :T], 0.0),
        entropy=torch.where(response_mask, entropy[:, :T], 0.0),
    )


def _decode(
    policy: Policy, choose: TokenChooser, group: Group, total: int, config: schema.GenerationConfig
) -> tuple[Ends, int, Tensor, Tensor, Tensor]:
    """Step by step: where the n of `total` rows end, the steps taken, ids, log-probs and entropy, (n, T) each."""
    device, n, T = group.rows.device, len(group.rows), config.max_new_tokens
    ends = Ends(n, policy.eos_token_ids, policy.tokenizer, config, device)
    response_ids = torch.full((n, T), policy.pad_token_id, device=device)
    logprobs = torch.zeros(n, T, device=device)
    entropy = torch.zeros(n, T, device=device)
    every = CHECK_EVERY if device.type == "cuda" else 1
    active = list(group.batches)
    logits = [batch.prefill() for batch in active]
    steps = 0
    while True:
        noise = choose.noise(total, logits[0].shape[-1], device)
        for batch, scores in zip(active, logits, strict=True):
            rows = batch.rows
            choice = choose(scores, None if noise is None else noise[group.rows[rows]], steps)
            response_ids[rows, steps] = torch.where(ends.ended[rows], policy.pad_token_id, choice.ids)
            logprobs[rows, steps] = choice.logprobs
            entropy[rows, steps] = choice.entropy
        steps += 1
        ends.update(response_ids[:, :steps])
        if steps == T:
            break
        if ends.can_end and steps % every == 0:
            active = _without_ended(active, ends.ended)
            if not active:
                break
        logits = [batch.step(response_ids[batch.rows, steps - 1]) for batch in active]
    return ends, steps, response_ids, logprobs, entropy


def _without_ended(batches: list[DecodingBatch], ended: Tensor) -> list[DecodingBatch]:
    """Drop what has ended: whole batches, and rows once half of a batch's are idle (selecting copies the cache)."""
    left = []
    for batch in batches:
        alive = (~ended[batch.rows]).nonzero().squeeze(1)
        if len(alive) == 0:
            continue
        if 2 * len(alive) <= len(batch.rows):
            batch.keep(alive)
        left.append(batch)
    return left


class _Stream:
    """The global random state, which every group reads from the same place; it ends where the longest group left it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: Tensor | None = None
        self._end: Tensor | None = None
        self.steps = 0

    @contextmanager
    def replayed(self) -> Iterator[_Replay]:
        if self._start is None:
            self._start = self._state()
        else:
            self._restore(self._start)
        replay = _Replay()
        yield replay
        if replay.steps > self.steps:
            self.steps, self._end = replay.steps, self._state()

    def finish(self) -> None:
        if self._end is not None:
            self._restore(self._end)

    def _state(self) -> Tensor:
        cuda = self._device.type == "cuda"
        return torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()

    def _restore(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


@dataclass
class _Replay:
    steps: int = 0  # that a group took
