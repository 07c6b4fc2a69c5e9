"""The rewards of a run: the one that it trains on, and the evaluator."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from apa_cli.config.schema import ScorerConfig, SeveralConfig, TrainConfig
from apa_cli.models.device import Runtime
from apa_cli.models.policy import Policy
from apa_cli.models.token_ids import same_tokenizer
from apa_cli.rewards.classifier import load_classifier
from apa_cli.rewards.function import RewardFunction, load_function
from apa_cli.rewards.http import HttpReward
from apa_cli.rewards.math import MathReward
from apa_cli.rewards.record import FinishedResponses, Scored, Scorer
from apa_cli.rewards.reward_model import RewardModel
from apa_cli.rewards.weighted import WeightedRewards, by_role, score


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
        scorers = {
            name: load_reward(
                part,
                policy,
                runtime,
                key=f"{key}.components.{name}",
                microbatch_tokens=microbatch_tokens,
                loaded=loaded,
                modules=modules,
            )
            for name, part in config.components.items()
        }
        return WeightedRewards(scorers, {name: part.weight for name, part in config.components.items()})
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
