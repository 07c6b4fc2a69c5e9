"""Sample responses with their log-probs and entropy, and decode them to text."""

from __future__ import annotations

from importlib import import_module

import torch

from apa_cli.config import schema
from apa_cli.data.prompts import PromptBatch
from apa_cli.data.tokenization import tokens_after
from apa_cli.models.policy import Policy
from apa_cli.rollouts.trajectory import Trajectory


@torch.no_grad()
def sample(
    policy: Policy, prompts: PromptBatch, config: schema.GenerationConfig, *, greedy: bool = False
) -> Trajectory:
    """One response per prompt, drawn from π_θ at `config.temperature` with the global random state."""
    generate = import_module(f"apa_cli.rollouts.backends.{config.backend}").generate  # vLLM is imported on demand
    with policy.runtime.autocast():
        trajectory: Trajectory = generate(policy, prompts.prompt_ids, prompts.prompt_mask, config, greedy=greedy)
    return trajectory


def decode(policy: Policy, rollout: Trajectory, stop: list[str]) -> list[str]:
    """The responses as text, without special tokens and without the token or stop string that ended them.

    The text is what a response adds to its decoded prompt, as some tokenizers drop the leading space of a response
    alone. A stop string that is complete before generation.min_new_tokens ends nothing and is ordinary text.
    """
    prompts, bodies = rollout.prompt_token_ids(), _bodies(policy, rollout)
    texts = _texts(policy, prompts, bodies)
    if not stop:
        return texts
    counts, ended = rollout.response_mask.sum(dim=1).tolist(), rollout.ended.tolist()
    before = _texts(policy, prompts, [body[:-1] for body in bodies])
    return [
        _without_stop(text, stop, head) if end and len(body) == count else text  # an end token is removed already
        for text, head, body, count, end in zip(texts, before, bodies, counts, ended, strict=True)
    ]


def spoken_ids(policy: Policy, rollout: Trajectory, texts: list[str]) -> list[list[int]]:
    """The sampled ids of `texts`, the result of `decode`.

    A token with the last characters of a text and the first of the stop string is replaced by tokens of the former.
    """
    prompts, bodies = rollout.prompt_token_ids(), _bodies(policy, rollout)
    for row, whole in enumerate(_texts(policy, prompts, bodies)):
        if whole == texts[row]:
            continue
        prompt, body, said = prompts[row], bodies[row], whole
        while body and not texts[row].startswith(said):
            body = body[:-1]
            said = _texts(policy, [prompt], [body])[0]
        before = policy.tokenizer.decode([*prompt, *body], skip_special_tokens=True)
        bodies[row] = body + tokens_after(policy.tokenizer, [before], [texts[row].removeprefix(said)])[0]
    return bodies


def _bodies(policy: Policy, rollout: Trajectory) -> list[list[int]]:
    """The response tokens without the end token, which may be an ordinary token to the tokenizer."""
    ends = set(policy.eos_token_ids)
    return [ids[:-1] if ids and ids[-1] in ends else ids for ids in rollout.response_token_ids()]


def raw_texts(policy: Policy, rollout: Trajectory) -> tuple[list[str], list[str]]:
    """Prompts and responses with all special tokens and with the token or stop string that ended them."""
    asked = rollout.prompt_token_ids()
    prompts = policy.tokenizer.batch_decode(asked, skip_special_tokens=False)
    return prompts, _texts(policy, asked, rollout.response_token_ids(), bare=False)


def _texts(policy: Policy, prompts: list[list[int]], bodies: list[list[int]], *, bare: bool = True) -> list[str]:
    before, whole, alone = (
        policy.tokenizer.batch_decode(ids, skip_special_tokens=bare)
        for ids in (prompts, [p + b for p, b in zip(prompts, bodies, strict=True)], bodies)
    )
    return [w[len(b) :] if w.startswith(b) else a for w, b, a in zip(whole, before, alone, strict=True)]


def _without_stop(text: str, stop: list[str], head: str) -> str:
    """Cut the stop string that the last token completed; `head` is the text without that token."""
    known = len(head.rstrip("\N{REPLACEMENT CHARACTER}"))  # whole characters
    cuts = [place for place in (text.find(s, max(0, known - len(s) + 1)) for s in stop) if place >= 0]
    return text[: min(cuts)] if cuts else text
