"""Sampling responses with transformers, keeping log-probs and entropy as they are sampled.

What counts is decided by position: a row's length is noted the moment it ends, so padding never needs to be told from
a genuine EOS, and nothing vocabulary-sized outlives its step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from apa_cli.algorithms import response_logprobs, token_entropy
from apa_cli.config import schema
from apa_cli.data.prompts import PromptBatch
from apa_cli.models.policy import Policy
from apa_cli.rollouts.record import Rollout


class _Recorder(LogitsProcessor):
    """Sees the raw logits of every step: notes entropy at once and the chosen token's log-prob a step later."""

    def __init__(self, temperature: float, eos_token_ids: list[int], min_new_tokens: int) -> None:
        self.temperature, self.eos_token_ids, self.min_new_tokens = temperature, eos_token_ids, min_new_tokens
        self.logprobs: list[Tensor] = []  # T of (B, 1)
        self.entropy: list[Tensor] = []  # T of (B, 1)
        self._logits: Tensor | None = None  # (B, 1, V) of the step whose token is not known yet

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.settle(input_ids)
        self._logits = scores[:, None, :]
        self.entropy.append(token_entropy(self._logits, temperature=self.temperature))
        # torch cannot draw from NaN (on CUDA it ends the process): any token will do, its noted log-prob is NaN too
        scores = torch.where(self.entropy[-1].isfinite(), scores, 0.0)
        if len(self.entropy) <= self.min_new_tokens and self.eos_token_ids:
            scores = scores.clone()
            scores[:, self.eos_token_ids] = -torch.inf
        return scores

    def settle(self, input_ids: Tensor) -> None:
        if self._logits is not None:
            self.logprobs.append(response_logprobs(self._logits, input_ids[:, -1:], temperature=self.temperature))
            self._logits = None


class _EndRecorder(StoppingCriteria):
    """Ends a row at an EOS or a stop string and notes how many response tokens it counts."""

    def __init__(self, prompt_width: int, eos_token_ids: list[int], stop: Any | None, min_new_tokens: int) -> None:
        self.prompt_width, self.stop, self.min_new_tokens = prompt_width, stop, min_new_tokens
        self.eos_token_id = torch.tensor(eos_token_ids, dtype=torch.long)  # its presence makes generate pad ended rows
        self.lengths: Tensor | None = None  # (B,), 0 = not ended

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        step = input_ids.shape[1] - self.prompt_width
        if self.lengths is None:
            self.lengths = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
            self.eos_token_id = self.eos_token_id.to(input_ids.device)
        done = torch.isin(input_ids[:, -1], self.eos_token_id)
        if self.stop is not None and step >= self.min_new_tokens:
            # only the response is searched: a prompt may well end in a stop string
            done = done | self.stop(input_ids[:, self.prompt_width :], scores)
        self.lengths = torch.where((self.lengths == 0) & done, step, self.lengths)
        return self.lengths > 0


@torch.no_grad()
def sample(policy: Policy, prompts: PromptBatch, config: schema.GenerationConfig, *, greedy: bool = False) -> Rollout:
    """One response per prompt, drawn from π_θ at `config.temperature` with the global random state."""
    device = policy.runtime.device
    prompt_ids, prompt_mask = prompts.prompt_ids.to(device), prompts.prompt_mask.to(device)  # (B, P)
    P = prompt_ids.shape[1]
    stop = StopStringCriteria(policy.tokenizer, config.stop) if config.stop else None
    recorder = _Recorder(config.temperature, policy.eos_token_ids, config.min_new_tokens)
    ends = _EndRecorder(P, policy.eos_token_ids, stop, config.min_new_tokens)
    sampling = {} if greedy else {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    with policy.runtime.autocast():
        sequences = policy.model.generate(
            input_ids=prompt_ids,
            attention_mask=prompt_mask.long(),
            generation_config=GenerationConfig(
                max_new_tokens=config.max_new_tokens,
                do_sample=not greedy,
                num_beams=1,
                use_cache=True,
                pad_token_id=policy.pad_token_id,
                eos_token_id=policy.eos_token_ids or None,
                **sampling,
            ),
            logits_processor=LogitsProcessorList([recorder]),
            stopping_criteria=StoppingCriteriaList([ends]),
        )
    recorder.settle(sequences)
    response_ids = sequences[:, P:]  # (B, T)
    T = response_ids.shape[1]
    assert ends.lengths is not None
    ended = ends.lengths > 0
    lengths = torch.where(ended, ends.lengths, T)
    response_mask = torch.arange(T, device=device) < lengths[:, None]
    return Rollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        response_mask=response_mask,
        ended=ended,
        rollout_logprobs=torch.where(response_mask, torch.cat(recorder.logprobs, dim=1), 0.0),
        entropy=torch.where(response_mask, torch.cat(recorder.entropy, dim=1), 0.0),
    )


def decode(policy: Policy, rollout: Rollout, stop: list[str]) -> list[str]:
    """The counted response tokens as text, special tokens and a closing stop string left out.

    Text is what the response adds to its decoded prompt: some tokenizers drop the space that begins a lone response.
    """
    prompts = [
        row[keep].tolist() for row, keep in zip(rollout.prompt_ids.cpu(), rollout.prompt_mask.cpu(), strict=True)
    ]
    before = policy.tokenizer.batch_decode(prompts, skip_special_tokens=True)
    whole = policy.tokenizer.batch_decode(rollout.token_ids(), skip_special_tokens=True)
    alone = policy.tokenizer.batch_decode(
        [ids[len(prompt) :] for ids, prompt in zip(rollout.token_ids(), prompts, strict=True)], skip_special_tokens=True
    )
    texts = [w[len(b) :] if w.startswith(b) else a for w, b, a in zip(whole, before, alone, strict=True)]
    return [_without_stop(text, stop) for text in texts]


def _without_stop(text: str, stop: list[str]) -> str:
    """Cut where the first stop string begins; generation ended with the token that completed it."""
    cuts = [position for position in (text.find(s) for s in stop) if position >= 0]
    return text[: min(cuts)] if cuts else text
