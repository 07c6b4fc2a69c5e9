"""From prompts to responses with the log-probs and entropy they were drawn with, and from responses to text."""

from __future__ import annotations

from collections.abc import Callable

import torch

from apa_cli.config import schema
from apa_cli.data.prompts import PromptBatch
from apa_cli.models.policy import Policy
from apa_cli.rollouts.backends import hf, static
from apa_cli.rollouts.record import Rollout


@torch.no_grad()
def sample(policy: Policy, prompts: PromptBatch, config: schema.GenerationConfig, *, greedy: bool = False) -> Rollout:
    """One response per prompt, drawn from π_θ at `config.temperature` with the global random state."""
    generate = _backend(config.backend)
    with policy.runtime.autocast():
        return generate(policy, prompts.prompt_ids, prompts.prompt_mask, config, greedy=greedy)


def _backend(name: str) -> Callable[..., Rollout]:
    """The engines are imported by who uses them."""
    if name == "paged":
        from apa_cli.rollouts.backends import paged

        return paged.generate
    if name == "vllm":
        from apa_cli.rollouts.backends import vllm

        return vllm.generate
    return {"hf": hf.generate, "static": static.generate}[name]


def decode(policy: Policy, rollout: Rollout, stop: list[str]) -> list[str]:
    """The counted response tokens as text; special tokens, and the token or stop string that ended it, left out.

    Text is what the response adds to its decoded prompt: some tokenizers drop the space that begins a lone response.
    """
    prompts = [
        row[keep].tolist() for row, keep in zip(rollout.prompt_ids.cpu(), rollout.prompt_mask.cpu(), strict=True)
    ]
    ends = set(policy.eos_token_ids)  # some are ordinary tokens to the tokenizer
    token_ids = [ids[:-1] if ids[-1] in ends else ids for ids in rollout.token_ids()]
    before = policy.tokenizer.batch_decode(prompts, skip_special_tokens=True)
    whole = policy.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
    alone = policy.tokenizer.batch_decode(
        [ids[len(prompt) :] for ids, prompt in zip(token_ids, prompts, strict=True)], skip_special_tokens=True
    )
    texts = [w[len(b) :] if w.startswith(b) else a for w, b, a in zip(whole, before, alone, strict=True)]
    return [_without_stop(text, stop) for text in texts]


def _without_stop(text: str, stop: list[str]) -> str:
    """Cut where the first stop string begins; generation ended with the token that completed it."""
    cuts = [position for position in (text.find(s) for s in stop) if position >= 0]
    return text[: min(cuts)] if cuts else text
