"""Judge the policy in training on held-out prompts, with the code of `apa-eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from apa_cli.config.schema import TrainConfig
from apa_cli.data.prompts import Prompt
from apa_cli.evaluation.measures import measure
from apa_cli.evaluation.respond import OPPONENTS, RESPONSES, JudgedResponse, respond
from apa_cli.models.roles import Models
from apa_cli.rewards.scorers import Scorers

WITH_INTERVALS = ("reward", "evaluator", "kl")  # logged with 95 % intervals


@dataclass(frozen=True, kw_only=True)
class Judgement:
    metrics: dict[str, float]  # eval/*
    responses: list[JudgedResponse]  # one per prompt, in their order
    opponents: list[JudgedResponse]  # the initial policy's responses in comparisons


def evaluate(
    models: Models,
    scorers: Scorers,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    opponents: list[JudgedResponse] | None = None,
    *,
    token_budget: int | None = None,
) -> Judgement:
    """Sample one response per prompt and judge it, against `opponents`: the initial policy's responses.

    None of them: this is the initial policy, and they are drawn from it, from a stream of their own. Training's random
    state is left as it was. A response without a finite score is left out of what needs one.
    """
    if token_budget is not None:
        scorers.limit_tokens(token_budget)
    draw = partial(
        respond,
        models,
        scorers,
        prompts,
        config,
        token_budget=token_budget,
        lenient=True,
    )
    opponents = draw(stream=OPPONENTS) if opponents is None else opponents
    responses = draw(stream=RESPONSES)
    figures = measure(responses, opponents or None, resamples=config.evaluation.resamples, seed=config.seed)
    metrics = {f"eval/{name}": figure.value for name, figure in figures.items()}
    for name in WITH_INTERVALS:
        if name in figures:
            metrics[f"eval/{name}_low"], metrics[f"eval/{name}_high"] = figures[name].low, figures[name].high
    return Judgement(metrics=metrics, responses=responses, opponents=opponents)
