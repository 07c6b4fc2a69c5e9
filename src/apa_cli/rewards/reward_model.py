"""reward.kind=model: a sequence-classification model with its own tokenizer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from apa_cli.config.schema import ScorerConfig
from apa_cli.data.messages import TOOLS, Messages, hh_messages, without_oldest_turn
from apa_cli.data.template import Template
from apa_cli.data.tokenization import added_tokens, tokenize
from apa_cli.errors import UserError
from apa_cli.models.device import Runtime
from apa_cli.models.limits import room_of
from apa_cli.models.microbatches import pass_tokens, plan_microbatches
from apa_cli.models.token_ids import check_ids, filling_id, known_ids
from apa_cli.rewards.record import FinishedResponses, whole_texts


class RewardModel:
    """Any `AutoModelForSequenceClassification`; a decoder's score is read at the last token.

    It reads the prompt and the response, without the stop string and the response's special tokens, then what its
    tokenizer or template appends, else EOS according to `reward.eos`. The policy's ids are used if the tokenizers are
    the same; otherwise the text is tokenized again, with the same result.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: ScorerConfig,
        runtime: Runtime,
        *,
        key: str,
        shares_tokenizer: bool,
        microbatch_tokens: int,
        policy_tokenizer: Any = None,
    ) -> None:
        self.model, self.tokenizer, self.config, self.runtime, self.key = model, tokenizer, config, runtime, key
        self.microbatch_tokens = microbatch_tokens
        self.shares_tokenizer, self.policy_tokenizer = shares_tokenizer, policy_tokenizer
        self.max_tokens = self._longest()
        if config.format == "chat" and not tokenizer.chat_template:
            raise UserError(f"{key}.format", f"{config.path} has no chat template", f"use {key}.format=text")
        outputs = int(model.config.num_labels)
        if outputs > 1 and config.label is None:
            remedy = f"say which is the score, {key}.label=0 …"
            raise UserError(f"{key}.label", f"{config.path} has {outputs} outputs", remedy)
        if config.label is not None and config.label >= outputs:
            raise UserError(f"{key}.label", f"{config.path} has {outputs} outputs", f"give one from 0 to {outputs - 1}")
        self.label = config.label or 0
        # outputs of problem_type multi_label_classification or regression are apart from each other
        self.log_odds = outputs > 1 and model.config.problem_type in (None, "single_label_classification")
        if config.eos == "always" and tokenizer.eos_token_id is None:
            problem = f"always, but the tokenizer of {config.path} has no EOS"
            raise UserError(f"{key}.eos", problem, f"use {key}.eos=auto")
        after = added_tokens(tokenizer, "a")[1]
        self._own_end = tokenize(tokenizer, ["a"], special=True)[0][-after:] if after else []  # such as [SEP]
        self._unsaid = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._known = known_ids(model)
        self._pad = filling_id(tokenizer, self._known)
        self._causal_head = _causal_head(model)
        self._reads_segments = (  # RoBERTa takes the argument, and has one kind of segment
            self._causal_head is None
            and "token_type_ids" in inspect.signature(model.forward).parameters
            and getattr(model.config, "type_vocab_size", 2) > 1
        )

    def reads(self, *, chat: bool) -> str:
        """The format it reads, chat, policy, text or pair, for prompts that are chats or are not.

        Without a chat template, a model with the policy's tokenizer reads chats in the policy's template.
        """
        if self.config.format != "auto":
            return self.config.format
        return "chat" if self.tokenizer.chat_template else "policy" if chat and self.shares_tokenizer else "text"

    def passes_ids_through(self, *, chat: bool) -> bool:
        """Whether the policy's token ids are those of the scored text."""
        reads = self.reads(chat=chat)
        return self.shares_tokenizer and (reads == "policy" or (reads == "text" and not chat))

    def closes(self, finished: FinishedResponses) -> list[bool]:
        """Which responses get an EOS: none if the tokenizer or the template appends an end."""
        chat = finished.messages is not None
        if self.config.eos != "auto" or self.closed_by(chat=chat) is not None:
            return [self.config.eos == "always"] * len(finished.responses)
        return list(finished.ended) or [False] * len(finished.responses)

    def closed_by(self, *, chat: bool) -> str | None:
        """What appends an end to every text: template, tokenizer, or None."""
        reads = self.reads(chat=chat)
        if reads in ("chat", "pair"):
            return "template" if reads == "chat" else "tokenizer"
        return "tokenizer" if reads == "text" and self._own_end else None

    def _longest(self) -> int:
        """reward.max_tokens, or the smaller limit of model and tokenizer."""
        room, asked = room_of(self.model), self.config.max_tokens
        if asked is not None and room is not None and room.firm and asked > room.tokens:
            problem = f"{asked}, and {self.config.path} has positions for {room.tokens} tokens"
            raise UserError(f"{self.key}.max_tokens", problem, "lower it, or leave it null")
        limits = [10**9 if room is None else room.tokens, self.tokenizer.model_max_length]
        return asked or min(limit for limit in limits if limit > 0)

    def __call__(self, finished: FinishedResponses) -> list[float]:
        ids, types = self.fed(finished)
        scores, device = torch.zeros(len(ids)), self.runtime.device.type
        budget = pass_tokens(self.microbatch_tokens, device)
        for rows in plan_microbatches([len(row) for row in ids], [0] * len(ids), budget, device_type=device):
            part = self._forward([ids[r] for r in rows], [types[r] for r in rows] if types is not None else None)
            scores[list(rows)] = part.cpu()
        return scores.tolist()

    def not_finite(self, row: int, score: float) -> UserError:
        problem = f"{self.config.path} scored response {row} as {score}"
        return UserError(f"{self.key}.path", problem, "try precision=fp32, or another reward model")

    def fed(self, finished: FinishedResponses) -> tuple[list[list[int]], list[list[int]] | None]:
        """Ids and segments as the model reads them. Raises UserError for an id that it does not know."""
        ids, types = self._token_ids(finished)
        check_ids(ids, self._known, self.tokenizer, key=f"{self.key}.path", whose=str(self.config.path))
        return [self._cut(row) for row in ids], [self._cut(row) for row in types] if types is not None else None

    def _cut(self, ids: list[int]) -> list[int]:
        """The last `max_tokens` ids; an encoder keeps its first token, which it pools."""
        if len(ids) <= self.max_tokens:
            return ids
        if self._causal_head is None:
            return [ids[0], *ids[len(ids) - self.max_tokens + 1 :]]
        return ids[-self.max_tokens :]

    def _token_ids(self, finished: FinishedResponses) -> tuple[list[list[int]], list[list[int]] | None]:
        """Ids of every text, and the segments of pairs if the model distinguishes them."""
        chat = finished.messages is not None
        reads, closes = self.reads(chat=chat), self.closes(finished)
        types: list[list[int]] | None = None
        if reads == "chat":
            ids = self._chat_ids(finished)
        elif reads == "policy":
            ids = list(finished.token_ids)
            if chat:  # closed as the policy's template closes a turn
                ids, closes = finished.closed_ids(closes), [False] * len(ids)
            if not self.shares_tokenizer:  # the policy's exact text in this model's tokens
                texts = self.policy_tokenizer.batch_decode(ids, skip_special_tokens=False)
                ids = tokenize(self.tokenizer, texts, special=False)
        elif reads == "pair":
            pairs = self.tokenizer(finished.prompts, finished.responses)
            ids, types = pairs["input_ids"], pairs.get("token_type_ids") if self._reads_segments else None
        elif self.passes_ids_through(chat=chat):
            ids = [row + self._own_end for row in self._without_special_tokens(finished)]
        else:
            ids = tokenize(self.tokenizer, whole_texts(finished), special=True)
        written, eos = self.closed_by(chat=chat) is not None, self.tokenizer.eos_token_id
        for row, close in enumerate(closes):
            if close and eos is not None and not (written and ids[row][-1:] == [eos]):
                ids[row] = [*ids[row], eos]
                if types is not None:
                    types[row] = [*types[row], types[row][-1]]
        return ids, types

    def _without_special_tokens(self, finished: FinishedResponses) -> list[list[int]]:
        """Token ids without the response's special tokens, which its text does not show."""
        known = len(self.tokenizer)
        starts = finished.prompt_lengths or [len(row) for row in finished.token_ids]
        return [
            row[:start] + [i for i in row[start:] if i < known and i not in self._unsaid]
            for row, start in zip(finished.token_ids, starts, strict=True)
        ]

    def _chat_ids(self, finished: FinishedResponses) -> list[list[int]]:
        """Ids of each dialogue in the model's template, without the oldest turns if it is too long."""
        torn = finished.torn or [False] * len(finished.prompts)
        prompts = finished.messages or [hh_messages(p, torn=t) for p, t in zip(finished.prompts, torn, strict=True)]
        tools = finished.columns.get(TOOLS) if finished.messages is not None else None
        found = []
        for prompt, response, own in zip(prompts, finished.responses, tools or [None] * len(prompts), strict=True):
            dialogue: Messages | None = (*prompt, {"role": "assistant", "content": response.strip()})
            ids: list[int] = []
            while dialogue is not None and (not ids or len(ids) > self.max_tokens):
                ids = self.tokenizer(self._render(dialogue, own), add_special_tokens=False)["input_ids"]
                dialogue = without_oldest_turn(dialogue)
            found.append(ids)
        return found

    def _render(self, dialogue: Messages, tools: Any) -> str:
        try:
            return Template(self.tokenizer).render(dialogue, tools, add_generation_prompt=False)
        except Exception as error:  # a template may fail in any way
            problem = f"the chat template of {self.config.path} refuses a dialogue: {error}"
            remedy = f"use {self.key}.format=text, or a model whose template takes these roles"
            raise UserError(f"{self.key}.path", problem, remedy) from error

    @torch.no_grad()
    def _forward(self, sequences: list[list[int]], segments: list[list[int]] | None) -> Tensor:
        """Scores (b,), float32, from right-padded sequences of token ids."""
        device = self.runtime.device
        ids = _rectangle(sequences, self._pad).to(device)  # (b, l)
        mask = _rectangle([[1] * len(ids) for ids in sequences], 0).to(device)
        with self.runtime.autocast():
            if self._causal_head is None:
                types = {} if segments is None else {"token_type_ids": _rectangle(segments, 0).to(device)}
                logits = self.model(input_ids=ids, attention_mask=mask, **types).logits  # (b, labels)
            else:
                trunk, head = self._causal_head
                hidden = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (b, l, H)
                last = mask.sum(dim=1) - 1
                pooled = hidden[torch.arange(len(sequences), device=device), last]  # (b, H)
                with torch.autocast(device.type, enabled=False):  # bf16 scores near 5 would come in steps of 0.03
                    bias = None if head.bias is None else head.bias.float()
                    logits = torch.nn.functional.linear(pooled.float(), head.weight.float(), bias)
        return self._score(logits.float())

    def _score(self, logits: Tensor) -> Tensor:
        """(b, labels) -> (b,): the label's output, for classes its log-odds, log p / (1 − p)."""
        chosen = logits[:, self.label]
        if not self.log_odds:
            return chosen
        others = [i for i in range(logits.shape[1]) if i != self.label]
        return chosen - logits[:, others].logsumexp(dim=1)

    def describe_score(self) -> str | None:
        """Which of several outputs is the score; None if there is one."""
        outputs = self.model.config.num_labels
        if outputs == 1:
            return None
        name = f"output {self.label} ({self.model.config.id2label.get(self.label)})"
        return f"the log-odds of {name} among {outputs}" if self.log_odds else f"the value of {name}"


def _rectangle(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """(b, l), padded on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


def _causal_head(model: Any) -> tuple[Any, Any] | None:
    """(trunk, score head) of a decoder-only classifier; None for encoders, which pool differently."""
    head = getattr(model, "score", None)
    return (model.base_model, head) if isinstance(head, torch.nn.Linear) else None
