"""Show the first prompt as the policy and every reward read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from apa_cli.config.schema import ScorerConfig, TrainConfig
from apa_cli.data.loading import load_prompts
from apa_cli.data.prompts import Prompt, PromptSet, collate
from apa_cli.errors import UserError
from apa_cli.models.device import Runtime
from apa_cli.models.loading import load_tokenizer
from apa_cli.models.policy import Policy
from apa_cli.models.unloaded import unloaded_model
from apa_cli.rewards.classifier import classifier_config, classifier_tokenizer
from apa_cli.rewards.math import MathReward, check_answers
from apa_cli.rewards.record import FinishedResponses, Scorer
from apa_cli.rewards.reward_model import RewardModel
from apa_cli.rewards.scorers import load_reward

RESPONSE = "(the response)"
LONGEST = 1200  # characters of a text that is shown whole
TRIED = 64  # prompts that reward models are shown before training


def visible(text: str) -> str:
    """The text on one line, with control characters escaped and without the middle of a long text."""
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def readings(prompt: Prompt, policy: Policy, scorers: Mapping[str, Scorer | None]) -> list[str]:
    """A line for the policy and for each of `scorers` by its role; None is one that is not loaded.

    Reward models are shown the response that the row holds, or else words that say where it stands.
    """
    tokenizer, finished = policy.tokenizer, answered([prompt], policy)
    lines = [f"{'policy':<10} reads {visible(_decoded(tokenizer, prompt.token_ids))}"]
    for role, scorer in scorers.items():
        if isinstance(scorer, RewardModel):
            text = _decoded(scorer.tokenizer, scorer.fed(finished)[0][0])
        elif isinstance(scorer, MathReward):
            text = scorer.reading(finished.columns, finished.responses[0] if prompt.logged is not None else None)
        else:
            text = prompt.text
        lines.append(f"{role:<10} reads {visible(text)}")
    return lines


def answered(prompts: Sequence[Prompt], policy: Policy) -> FinishedResponses:
    """The prompts as rewards read them, with the row's response or a placeholder."""
    batch = collate(prompts, policy.pad_token_id)
    words = list(policy.tokenizer(RESPONSE, add_special_tokens=False)["input_ids"])
    logged = [words if prompt.logged is None else prompt.logged.token_ids for prompt in prompts]
    ids = [[i for i in row if i not in policy.eos_token_ids] for row in logged]
    texts = [RESPONSE if p.logged is None else _decoded(policy.tokenizer, i) for p, i in zip(prompts, ids, strict=True)]
    return FinishedResponses(
        prompts=batch.texts,
        responses=texts,
        messages=batch.messages,
        columns=batch.columns,
        token_ids=[[*prompt.token_ids, *row] for prompt, row in zip(prompts, ids, strict=True)],
        prompt_lengths=[len(prompt.token_ids) for prompt in prompts],
        ended=[True] * len(prompts),
        closing=policy.closing_token(chat=batch.messages is not None),
        torn=batch.torn,
    )


def how_scored(prompts: PromptSet, policy: Policy, scorers: Mapping[str, Scorer | None]) -> list[str]:
    """Which of several outputs is a score, by role. Raises UserError for token ids that a reward model lacks."""
    first, lines = answered(prompts.prompts[:TRIED], policy), []
    for role, scorer in scorers.items():
        if isinstance(scorer, RewardModel):
            scorer.fed(first)
            lines += [f"the {role}'s score is {score}" for score in [scorer.describe_score()] if score is not None]
    return lines


def check_templates(prompts: PromptSet, scorers: Mapping[str, Scorer | None]) -> None:
    """Raise UserError if a reward model would apply its template to prompts that have one already."""
    for scorer in scorers.values():
        if prompts.rendered and isinstance(scorer, RewardModel) and scorer.reads(chat=False) == "chat":
            problem = f"the prompts have been through the policy's chat template, and that of {scorer.config.path} "
            problem += "would go around them once more"
            remedy = f"give the prompts as messages, or set {scorer.key}.format=policy"
            raise UserError(f"{scorer.key}.format", problem, remedy)


def planned_readings(config: TrainConfig, runtime: Runtime) -> tuple[list[Prompt], list[str]]:
    """The prompts of a run to come, and the same of it, with no weights.

    Reward functions and servers are not called. Raises UserError for data or a tokenizer that the run could not use.
    """
    check_answers(config)
    given = config.policy
    options: dict[str, Any] = {"revision": given.revision, "trust_remote_code": given.trust_remote_code}
    tokenizer = load_tokenizer("policy.path", given.path, **options)
    model = unloaded_model("policy.path", given.path, **options)
    policy = Policy(model, tokenizer, runtime, apart=False, stop_tokens=config.generation.stop_tokens)
    prompts, _ = load_prompts(config.data, tokenizer, evaluation_prompts=config.evaluation.prompts, seed=config.seed)
    scorers = {role: _planned(key, one, policy, runtime) for role, key, one in config.scorers()}
    check_templates(prompts, scorers)
    notes = [f"{'data':<10} {line}" for line in (prompts.describe(), *prompts.findings.lines())]
    return prompts.prompts, [*notes, *readings(prompts.prompts[0], policy, scorers)]


def _planned(key: str, config: ScorerConfig, policy: Policy, runtime: Runtime) -> Scorer | None:
    from transformers import AutoModelForSequenceClassification

    if config.kind == "math":
        return load_reward(config, policy, runtime, key=key, microbatch_tokens=1)
    if config.kind != "model" or config.path is None:
        return None
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            classifier_config(config.path, config.revision, f"{key}.path")
        )
    tokenizer = classifier_tokenizer(config.path, config.revision, f"{key}.path")
    loaded = {(config.path, config.revision): (model, tokenizer)}
    return load_reward(config, policy, runtime, key=key, microbatch_tokens=1, loaded=loaded)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
