"""The rewards of a run: the one that it trains on, and the evaluator. Either may be the weighted sum of several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from apa_cli.config.schema import ScorerConfig, SeveralConfig, TrainConfig
from apa_cli.errors import UserError
from apa_cli.models.device import Runtime
from apa_cli.models.policy import Policy
from apa_cli.models.token_ids import same_tokenizer
from apa_cli.rewards.classifier import load_classifier
from apa_cli.rewards.function import RewardFunction, load_function, within_float32
from apa_cli.rewards.http import HttpReward
from apa_cli.rewards.math import MathReward
from apa_cli.rewards.record import FinishedResponses, Scored, Scorer
from apa_cli.rewards.reward_model import RewardModel


class WeightedRewards:
    """Σ weight · score; NaN for a response if a score is not finite."""

    def __init__(self, scorers: Mapping[str, Scorer], weights: Mapping[str, float]) -> None:
        self.scorers, self.weights = dict(scorers), dict(weights)

    def __call__(self, finished: FinishedResponses) -> list[float]:
        return self.score(finished).scores

    def score(self, finished: FinishedResponses) -> Scored:
        scored = {name: score(scorer, finished) for name, scorer in self.scorers.items()}
        rows = zip(*(part.scores for part in scored.values()), strict=True)
        parts = {name: part.scores for name, part in scored.items()}
        counts = {f"{name}_{what}": given for name, part in scored.items() for what, given in part.parts.items()}
        return Scored(scores=[self._sum(row) for row in rows], parts=parts | counts)

    def not_finite(self, row: int, score: float) -> UserError:
        """The error for a sum of finite scores."""
        name = next(iter(self.scorers))
        complaint = self.scorers[name].not_finite(row, score)
        weights = f"{complaint.where.partition('.components.')[0]}.components"
        return UserError(weights, f"response {row} comes to {score}", "lower the weights")

    def _sum(self, row: tuple[float, ...]) -> float:
        if not all(map(math.isfinite, row)):
            return math.nan
        return within_float32(sum(weight * score for weight, score in zip(self.weights.values(), row, strict=True)))


def score(scorer: Scorer, finished: FinishedResponses) -> Scored:
    """The scores of the responses, with those of each part."""
    if isinstance(scorer, (WeightedRewards, MathReward)):
        return scorer.score(finished)
    return Scored(scores=scorer(finished))


def complaint(scorer: Scorer, scored: Scored, row: int) -> UserError:
    """The error for a score that is not finite, of the first component without one."""
    if isinstance(scorer, WeightedRewards):
        for name, part in scorer.scorers.items():
            if not math.isfinite(value := scored.parts_of(row)[name]):
                return part.not_finite(row, value)
    return scorer.not_finite(row, scored.scores[row])


def by_role(role: str, scorer: Scorer | None) -> dict[str, Scorer | None]:
    """A reward, or each of several as `role.NAME`."""
    if isinstance(scorer, WeightedRewards):
        return {f"{role}.{name}": part for name, part in scorer.scorers.items()}
    return {role: scorer}


def require_scores(scorer: Scorer, scored: Scored) -> None:
    """Raise the scorer's error if no response has a finite score."""
    if not any(map(math.isfinite, scored.scores)):
        raise complaint(scorer, scored, 0)


@dataclass(frozen=True, kw_only=True)
class Scorers:
    reward: Scorer | None  # None if scores are logged and nothing is evaluated
    evaluator: Scorer | None  # for held-out responses only

    def score(self, finished: FinishedResponses) -> Scored:
        """The reward's scores."""
        assert self.reward is not None  # config.needs_reward
        return score(self.reward, finished)

    def limit_tokens(self, token_budget: int) -> None:
        """Limit the tokens in micro-batches of reward models."""
        for scorer in (self.reward, self.evaluator):
            for part in by_role("", scorer).values():
                if isinstance(part, RewardModel):
                    part.microbatch_tokens = min(part.microbatch_tokens, token_budget)

    def models(self) -> dict[str, Any]:
        """The transformers model of each reward, None for other kinds."""
        parts = {**by_role("reward", self.reward), **by_role("evaluator", self.evaluator)}
        return {name: getattr(part, "model", None) for name, part in parts.items()}


def load_scorers(
    config: TrainConfig, policy: Policy, runtime: Runtime, *, modules: dict[str, ModuleType] | None = None
) -> Scorers:
    """Load the rewards of `config`; they share models. modules: files of functions that were run already."""
    loaded: Loaded = {}
    budget = config.training.microbatch_tokens
    scorers = {
        role: load_reward(own, policy, runtime, key=key, microbatch_tokens=budget, loaded=loaded, modules=modules)
        for role, key, own in config.rewards()
    }
    return Scorers(reward=scorers.get("reward"), evaluator=scorers.get("evaluator"))


Loaded = dict[tuple[str, str | None], tuple[Any, Any]]  # model and tokenizer by path and revision


def load_reward(
    config: ScorerConfig,
    policy: Policy,
    runtime: Runtime,
    *,
    key: str = "reward",
    microbatch_tokens: int,
    loaded: Loaded | None = None,
    modules: dict[str, ModuleType] | None = None,
) -> Scorer:
    """Load one reward, or reuse its model in `loaded` or its file in `modules`. key: the group's name in messages."""
    loaded = {} if loaded is None else loaded
    if isinstance(config, SeveralConfig) and config.components:
        load = partial(load_reward, microbatch_tokens=microbatch_tokens, loaded=loaded, modules=modules)
        parts = config.components.items()
        scorers = {name: load(part, policy, runtime, key=f"{key}.components.{name}") for name, part in parts}
        return WeightedRewards(scorers, {name: part.weight for name, part in parts})
    if config.kind == "function":
        assert config.function is not None  # check_config has seen to it
        function = load_function(config.function, f"{key}.function", modules)
        return RewardFunction(function, config.function, key=f"{key}.function", timeout=config.timeout_seconds)
    if config.kind == "http":
        return HttpReward(config, key=key)
    if config.kind == "math":
        return MathReward(config, key=key)
    assert config.path is not None
    place = (config.path, config.revision)
    if place not in loaded:
        loaded[place] = load_classifier(config.path, config.revision, runtime, f"{key}.path")
    model, tokenizer = loaded[place]
    sizes = [m.config.get_text_config().vocab_size for m in (model, policy.model)]  # a policy may sample any of its ids
    return RewardModel(
        model,
        tokenizer,
        config,
        runtime,
        key=key,
        shares_tokenizer=same_tokenizer(tokenizer, policy.tokenizer) and sizes[0] >= sizes[1],
        microbatch_tokens=microbatch_tokens,
        policy_tokenizer=policy.tokenizer,
    )
