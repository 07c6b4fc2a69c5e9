"""Prompts as the training loop sees them, and the endless stream of batches it draws from."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from apa_cli.data.messages import Message, Messages
from apa_cli.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LoggedResponse:
    """A response that data holds, as the policy would have sampled it."""

    index: int  # in the data set: where its reference log-probs are found
    token_ids: tuple[int, ...]  # at least one; EOS included
    ended: bool  # False = cut at generation.max_new_tokens
    score: float | None  # None where the reward is to score it


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    `token_ids` is what the policy reads, never more than data.max_prompt_tokens. `text` is what people and reward
    functions read: the prompt itself for formats text and hh (of a prompt that was cut, the part that was kept, so that
    nobody judges words the policy never saw); for chat the message, when there is one alone, otherwise "role: content"
    of each. `messages` is for chat only; turns that were left out as too long stand in neither.
    """

    token_ids: tuple[int, ...]
    text: str
    messages: Messages | None
    columns: dict[str, Any]  # every other column of the row; None where the row leaves it out
    place: str = ""  # of the row, for errors
    answer: Message | None = None  # the assistant's message that the row's dialogue ends with
    torn: bool = False  # cut on the left, where `text` may begin inside a turn
    logged: LoggedResponse | None = None  # with rollout.source=offline


@dataclass(frozen=True, kw_only=True)
class LoggedBatch:
    response_ids: Tensor  # (B, T) right-padded
    response_mask: Tensor  # (B, T) bool
    ended: Tensor  # (B,) bool
    scores: list[float] | None  # None where the reward is to score them
    indices: list[int]


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    prompt_ids: Tensor  # (B, P) left-padded
    prompt_mask: Tensor  # (B, P) bool, True = a token of the prompt
    texts: list[str]
    messages: list[list[Message]] | None  # chat only
    columns: dict[str, list[Any]]
    torn: list[bool]  # of each, whether its text may begin inside a turn
    copies: int = 1  # each prompt stands this often in the batch, next to itself
    logged: LoggedBatch | None = None  # a response to each, with rollout.source=offline


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    prompts: list[Prompt]
    cut: int  # how many of `prompts` were cut on the left, of dialogues their oldest turns
    dropped: int  # rows left out because they were too long
    source: str  # the file or data set, as the user named it
    all: int = 0  # how many there were to draw from
    withheld: int = 0  # training rows left out because the held-out set has the same prompt
    commit: str | None = None  # of a data set on the Hub, where it is known
    format: str = "text"  # text, chat, hh or hh_chat
    drawn: str | None = None  # how many rows of a larger data set were read, in words
    warnings: tuple[str, ...] = ()  # of rows that may not be what was meant
    rendered: bool = False  # most of them are texts that have been through the policy's chat template before

    @property
    def chat(self) -> bool:
        return any(prompt.messages is not None for prompt in self.prompts)

    @property
    def answered(self) -> int:
        """How many stand in dialogues that end with an answer to them."""
        return sum(prompt.answer is not None for prompt in self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def describe(self) -> str:
        """One line for the log."""
        notes = self.notes
        if len(self.prompts) + self.withheld < self.all:
            notes.insert(0, f"drawn by the seed from {self.all:,}")
        if self.answered:
            notes.append(f"{self.answered:,} without the answer they end with (the policy writes its own)")
        lengths = [len(prompt.token_ids) for prompt in self.prompts]
        if lengths:
            notes.append(f"{min(lengths):,} to {max(lengths):,} tokens")
        line = f"{len(self.prompts):,} {'chat prompts' if self.chat else 'prompts'}" + (
            f" from {self.source}" if self.source else ""
        )
        return f"{line}: {', '.join(notes)}" if notes else line

    @property
    def notes(self) -> list[str]:
        """What became of rows that are not here as they were read."""
        notes = [] if self.drawn is None else [self.drawn]
        if self.cut:
            notes.append(f"{self.cut:,} {'without their oldest turns' if self.chat else 'cut on the left'}")
        if self.dropped:
            notes.append(f"{self.dropped:,} dropped as too long")
        if self.withheld:
            notes.append(f"{self.withheld:,} left out because they are held out")
        return notes


def check_room(
    prompts: Sequence[Prompt], *, max_new_tokens: int, room: int | None, known: int, tokenizer: Any, model: str
) -> None:
    """Raise UserError for more tokens than the `room` that the model has, or for ids that its embedding lacks."""
    for prompt in prompts:
        ids = (*prompt.token_ids, *(prompt.logged.token_ids if prompt.logged is not None else ()))
        if (largest := max(ids)) >= known:
            token = tokenizer.convert_ids_to_tokens(largest)
            problem = f"{token} has id {largest}, and the {model} knows ids below {known}"
            remedy = "take it out, or resize the model's embeddings for the tokens that were added to its tokenizer"
            raise UserError(prompt.place or "data.path", problem, remedy)
    longest = max(len(prompt.token_ids) for prompt in prompts) + max_new_tokens
    if room is not None and longest > room:
        raise UserError(
            "data.max_prompt_tokens",
            f"the longest prompt and generation.max_new_tokens are {longest} tokens, and the {model} takes {room}",
            f"lower it to {max(1, room - max_new_tokens)} or less, or lower generation.max_new_tokens",
        )


def collate(prompts: Sequence[Prompt], pad_token_id: int, *, copies: int = 1) -> PromptBatch:
    """Left-pad prompts into one batch, each `copies` times.

    The mask comes from the lengths, so a prompt may contain the pad token. A column that a prompt lacks is None there.
    """
    if not prompts:
        raise ValueError("a batch needs at least one prompt")
    chat = [prompt.messages is not None for prompt in prompts]
    if any(chat) and not all(chat):
        raise ValueError("a batch mixes prompts with and without messages")
    width = max(len(prompt.token_ids) for prompt in prompts)
    prompts = [prompt for prompt in prompts for _ in range(copies)]
    prompt_ids = torch.full((len(prompts), width), pad_token_id, dtype=torch.long)  # (B, P)
    prompt_mask = torch.zeros((len(prompts), width), dtype=torch.bool)  # (B, P)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt.token_ids)
        prompt_ids[row, start:] = torch.tensor(prompt.token_ids, dtype=torch.long)
        prompt_mask[row, start:] = True
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return PromptBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        texts=[prompt.text for prompt in prompts],
        messages=[[dict(message) for message in prompt.messages or ()] for prompt in prompts] if any(chat) else None,
        columns={name: [prompt.columns.get(name) for prompt in prompts] for name in names},
        torn=[prompt.torn for prompt in prompts],
        copies=copies,
        logged=_collate_logged([prompt.logged for prompt in prompts if prompt.logged is not None], pad_token_id),
    )


def _collate_logged(responses: Sequence[LoggedResponse], pad_token_id: int) -> LoggedBatch | None:
    if not responses:
        return None
    shape = (len(responses), max(len(response.token_ids) for response in responses))
    response_ids = torch.full(shape, pad_token_id, dtype=torch.long)  # (B, T)
    response_mask = torch.zeros(shape, dtype=torch.bool)  # (B, T)
    for row, response in enumerate(responses):
        response_ids[row, : len(response.token_ids)] = torch.tensor(response.token_ids, dtype=torch.long)
        response_mask[row, : len(response.token_ids)] = True
    scores = [response.score for response in responses if response.score is not None]
    return LoggedBatch(
        response_ids=response_ids,
        response_mask=response_mask,
        ended=torch.tensor([response.ended for response in responses]),
        scores=scores or None,
        indices=[response.index for response in responses],
    )


class PromptStream:
    """Batches without end: every epoch visits each prompt once, in an order that (seed, epoch) decide alone.

    A batch may straddle the end of an epoch, and a set smaller than a batch wraps round as often as it must, so every
    batch has `batch_size` prompts, each of them `copies` times.
    """

    def __init__(
        self, prompts: Sequence[Prompt], *, batch_size: int, seed: int, pad_token_id: int, copies: int = 1
    ) -> None:
        if not prompts:
            raise ValueError("a stream needs at least one prompt")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, and has to be at least 1")
        self.prompts = prompts
        self.batch_size, self.copies = batch_size, copies
        self.pad_token_id = pad_token_id
        self._go_to(seed=seed, epoch=0, position=0)

    def __iter__(self) -> Iterator[PromptBatch]:
        return self

    def __next__(self) -> PromptBatch:
        batch: list[Prompt] = []
        while len(batch) < self.batch_size:
            if self.position == len(self.prompts):
                self._go_to(seed=self.seed, epoch=self.epoch + 1, position=0)
            taken = self._order[self.position : self.position + self.batch_size - len(batch)]
            batch.extend(self.prompts[index] for index in taken)
            self.position += len(taken)
        return collate(batch, self.pad_token_id, copies=self.copies)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, in numbers and strings that JSON can hold."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "size": len(self.prompts),
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the seed is the state's, the batch size may differ.

        Raises UserError when the prompts are not those the state was taken with.
        """
        if (state["size"], state["fingerprint"]) != (len(self.prompts), self._fingerprint):
            counts = f"{state['size']:,} then, {len(self.prompts):,} now"
            raise UserError(
                "data.path",
                f"the training prompts changed since the checkpoint ({counts})",
                "restore the data, the tokenizer and the data settings, or start a new run without resume",
            )
        self._go_to(seed=state["seed"], epoch=state["epoch"], position=state["position"])

    def _go_to(self, *, seed: int, epoch: int, position: int) -> None:
        self.seed, self.epoch, self.position = seed, epoch, position
        self._order = list(range(len(self.prompts)))
        random.Random(f"prompts/{seed}/{epoch}").shuffle(self._order)

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(array("q", (len(prompt.token_ids), *prompt.token_ids)).tobytes())
            if (logged := prompt.logged) is not None:
                digest.update(array("q", (len(logged.token_ids), *logged.token_ids, logged.ended)).tobytes())
                digest.update(array("d", () if logged.score is None else (logged.score,)).tobytes())
        return digest.hexdigest()[:16]
