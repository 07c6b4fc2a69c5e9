"""Prompts as training sees them, batches of them, and the endless stream that batches are drawn from."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from apa_cli.data.messages import Message, Messages
from apa_cli.data.table import Findings
from apa_cli.errors import UserError

RENDERED = "text that holds the markers of the policy's chat template is read as it stands"  # a finding


@dataclass(frozen=True, kw_only=True)
class LoggedResponse:
    """A response from the data, in the tokens that the policy would have sampled."""

    index: int  # position in the data set; identifies its reference log-probs
    token_ids: tuple[int, ...]  # at least one; EOS included
    ended: bool  # False = cut at generation.max_new_tokens
    score: float | None  # None = the reward scores it


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    `text` is for people and reward functions: the prompt of formats text and hh; the only message of a chat, or
    "role: content" for each of several. Whatever a cut removed is in none of `token_ids`, `text` and `messages`, so
    that nobody judges words that the policy did not read.
    """

    text: str
    columns: dict[str, Any]  # every other column of the row; None for a missing value
    token_ids: tuple[int, ...] = ()  # what the policy reads, at most data.max_prompt_tokens
    messages: Messages | None = None  # chat only
    place: str = ""  # of the row, in error messages
    answer: Message | None = None  # the assistant's message at the end of the row's dialogue
    cut: bool = False  # shortened: text on the left, a chat by its oldest turns
    logged: LoggedResponse | None = None  # rollout.source=offline

    @property
    def torn(self) -> bool:
        """Whether `text` may begin inside a turn."""
        return self.cut and self.messages is None


@dataclass(frozen=True, kw_only=True)
class LoggedBatch:
    response_ids: Tensor  # (B, T) right-padded
    response_mask: Tensor  # (B, T) bool
    ended: Tensor  # (B,) bool
    scores: list[float] | None  # None = the reward scores them
    indices: list[int]


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    prompt_ids: Tensor  # (B, P) left-padded
    prompt_mask: Tensor  # (B, P) bool, True = a token of the prompt
    texts: list[str]
    messages: list[list[Message]] | None  # chat only
    columns: dict[str, list[Any]]
    torn: list[bool]  # whether each text may begin inside a turn
    indices: list[int] = field(default_factory=list)  # of each row's prompt in its stream
    copies: int = 1  # consecutive rows with the same prompt
    logged: LoggedBatch | None = None  # one response to each prompt, rollout.source=offline


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of one source, and what happened to the rows that are missing here."""

    prompts: list[Prompt]
    source: str = ""  # the file or data set, as the user named it
    format: str = "text"  # text, chat, hh or hh_chat
    commit: str | None = None  # of a Hub data set, if known
    drawn: str | None = None  # how many rows of a larger data set were read, in words
    findings: Findings = field(default_factory=Findings)  # rows that may not be what the user meant
    all: int = 0  # usable prompts of the source, from which these were selected
    dropped: int = 0  # rows left out as too long
    withheld: int = 0  # training rows left out because the held-out set contains the same prompt

    @property
    def chat(self) -> bool:
        return any(prompt.messages is not None for prompt in self.prompts)

    @property
    def cut(self) -> int:
        return sum(prompt.cut for prompt in self.prompts)

    @property
    def answered(self) -> int:
        """Prompts whose dialogue has an answer."""
        return sum(prompt.answer is not None for prompt in self.prompts)

    @property
    def rendered(self) -> bool:
        """Whether most prompts are texts that the policy's chat template has already been applied to."""
        return 2 * self.findings.get(RENDERED, (0, ""))[0] > self.all

    def __len__(self) -> int:
        return len(self.prompts)

    def describe(self) -> str:
        """One line for the log."""
        notes = self.notes
        if len(self.prompts) + self.withheld < self.all:
            notes.insert(0, f"drawn by the seed from {self.all:,}")
        if self.answered:
            notes.append(f"{self.answered:,} without the answer they end with (the policy writes its own)")
        if lengths := [len(prompt.token_ids) for prompt in self.prompts]:
            notes.append(f"{min(lengths):,} to {max(lengths):,} tokens")
        line = f"{len(self.prompts):,} {'chat prompts' if self.chat else 'prompts'}"
        line += f" from {self.source}" if self.source else ""
        return f"{line}: {', '.join(notes)}" if notes else line

    @property
    def notes(self) -> list[str]:
        """What happened to rows before they became prompts."""
        return [
            *([self.drawn] if self.drawn else []),
            *([f"{self.cut:,} {'without their oldest turns' if self.chat else 'cut on the left'}"] if self.cut else []),
            *([f"{self.dropped:,} dropped as too long"] if self.dropped else []),
            *([f"{self.withheld:,} left out because they are held out"] if self.withheld else []),
        ]


def check_room(
    prompts: Sequence[Prompt], *, max_new_tokens: int, room: int | None, known: int, tokenizer: Any, model: str
) -> None:
    """Raise UserError for sequences longer than the model's `room`, or token ids outside its embedding (`known`)."""
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
    """Left-pad prompts into one batch, each `copies` times in a row.

    The mask follows the lengths, so a prompt may contain the pad token. Missing columns become None.
    """
    chat = prompts[0].messages is not None
    prompts = [prompt for prompt in prompts for _ in range(copies)]
    prompt_ids, prompt_mask = _padded([prompt.token_ids for prompt in prompts], pad_token_id, left=True)  # (B, P)
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return PromptBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        texts=[prompt.text for prompt in prompts],
        messages=[[dict(message) for message in prompt.messages or ()] for prompt in prompts] if chat else None,
        columns={name: [prompt.columns.get(name) for prompt in prompts] for name in names},
        torn=[prompt.torn for prompt in prompts],
        copies=copies,
        logged=_collate_logged([prompt.logged for prompt in prompts if prompt.logged is not None], pad_token_id),
    )


def _collate_logged(responses: Sequence[LoggedResponse], pad_token_id: int) -> LoggedBatch | None:
    if not responses:
        return None
    ids, mask = _padded([response.token_ids for response in responses], pad_token_id, left=False)  # (B, T)
    return LoggedBatch(
        response_ids=ids,
        response_mask=mask,
        ended=torch.tensor([response.ended for response in responses]),
        scores=[response.score for response in responses if response.score is not None] or None,
        indices=[response.index for response in responses],
    )


def _padded(rows: Sequence[Sequence[int]], pad_token_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, (B, longest row)."""
    each, side = [torch.tensor(row, dtype=torch.long) for row in rows], "left" if left else "right"
    ids = pad_sequence(each, batch_first=True, padding_value=pad_token_id, padding_side=side)
    marks = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    return ids, pad_sequence(marks, batch_first=True, padding_value=False, padding_side=side)


class PromptStream:
    """An endless iterator of batches; each epoch visits every prompt once, in an order set by (seed, epoch).

    Every batch has `batch_size` prompts, each `copies` times: batches cross the borders of epochs, and wrap round a set
    that is smaller than a batch.
    """

    def __init__(
        self, prompts: Sequence[Prompt], *, batch_size: int, seed: int, pad_token_id: int, copies: int = 1
    ) -> None:
        self.prompts, self.batch_size, self.copies, self.pad_token_id = prompts, batch_size, copies, pad_token_id
        self.skip: Callable[[int], bool] = lambda index: False  # prompts that are passed over
        self._go_to(seed=seed, epoch=0, position=0)

    def __iter__(self) -> Iterator[PromptBatch]:
        return self

    def __next__(self) -> PromptBatch:
        return self.take(self.batch_size)

    def take(self, count: int) -> PromptBatch:
        """The next `count` prompts, without those that `skip` names. Raises UserError where that leaves none."""
        taken: list[int] = []
        passed = 0
        while len(taken) < count:
            if self.position == len(self.prompts):
                self._go_to(seed=self.seed, epoch=self.epoch + 1, position=0)
            index = self._order[self.position]
            self.position += 1
            if not self.skip(index):
                taken.append(index)
                passed = 0
            elif (passed := passed + 1) > 2 * len(self.prompts):
                problem = f"leaves none of the {len(self.prompts):,} prompts"
                raise UserError("advantage.drop_unsolved", problem, "set it to false, or give easier prompts")
        batch = collate([self.prompts[index] for index in taken], self.pad_token_id, copies=self.copies)
        return replace(batch, indices=[index for index in taken for _ in range(self.copies)])

    def state_dict(self) -> dict[str, Any]:
        """The stream's position and its prompts' fingerprint, as JSON."""
        place = {"seed": self.seed, "epoch": self.epoch, "position": self.position}
        return {**place, "size": len(self.prompts), "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state`, with its seed; the batch size may differ.

        Raises UserError if the prompts are not those of `state`.
        """
        if (state["size"], state["fingerprint"]) != (len(self.prompts), self._fingerprint):
            counts = f"{state['size']:,} then, {len(self.prompts):,} now"
            problem = f"the training prompts changed since the checkpoint ({counts})"
            remedy = "restore the data, the tokenizer and the data settings, or start a new run without resume"
            raise UserError("data.path", problem, remedy)
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
