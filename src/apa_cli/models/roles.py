"""All models of a run, loaded once, each in its role."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from apa_cli.config.schema import TrainConfig
from apa_cli.models.device import Runtime
from apa_cli.models.limits import known_ids
from apa_cli.models.policy import Policy
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.reference import Reference, load_reference
from apa_cli.models.value import SeparateValue, Value, load_value
from apa_cli.rewards.reward_model import Loaded, RewardModel, Scorer, load_reward
from apa_cli.rewards.weighted import by_role


@dataclass(frozen=True, kw_only=True)
class Models:
    policy: Policy
    reference: Reference
    value: Value | None  # no critic
    scorer: Scorer | None  # where scores are logged and nothing is evaluated
    evaluator: Scorer | None  # judges held-out responses; never trains
    runtime: Runtime

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The policy's and the critic's, by names for people."""
        policy = {f"policy {name}": parameter for name, parameter in self.policy.model.named_parameters()}
        critic = self.value.named_parameters() if self.value is not None else ()
        return policy | {f"critic {name}": parameter for name, parameter in critic}

    def limits(self) -> dict[str, tuple[int | None, int]]:
        """How many tokens each model takes that reads the policy's ids, where that is known, and how many ids."""
        found = {"policy": (self.policy.room, self.policy.known_ids)}
        if (frozen := self.reference.frozen) is not None:
            found["reference"] = (frozen.room, frozen.known_ids)
        if isinstance(self.value, SeparateValue):
            found["critic"] = (self.value.room, known_ids(self.value.trunk))
        return found

    def commits(self) -> dict[str, str]:
        """`{role}_commit`: the Hub's commit of each model that came from there."""
        frozen = self.reference.frozen
        models: dict[str, Any] = {
            "policy": self.policy.model,
            "reference": frozen.model if frozen else None,
            "value": getattr(self.value, "trunk", None),
        }
        for role, scorer in (("reward", self.scorer), ("evaluator", self.evaluator)):
            models |= {name: getattr(part, "model", None) for name, part in by_role(role, scorer).items()}
        found = {role: getattr(getattr(model, "config", None), "_commit_hash", None) for role, model in models.items()}
        return {f"{role}_commit": commit for role, commit in found.items() if commit}

    def within(self, token_budget: int) -> Models:
        """These models, the reward models among them with micro-batches of no more tokens than this."""
        for scorer in (self.scorer, self.evaluator):
            for part in by_role("", scorer).values():
                if isinstance(part, RewardModel):
                    part.microbatch_tokens = min(part.microbatch_tokens, token_budget)
        return self


def load_models(
    config: TrainConfig,
    runtime: Runtime,
    *,
    checkpoint: Path | None = None,
    modules: dict[str, ModuleType] | None = None,
) -> Models:
    """Load every role of `config`; trained weights from `checkpoint` (a checkpoint's folder) where given.

    `modules`: the files of reward functions that were run already.
    """
    torch.manual_seed(config.seed)  # a new adapter starts from random numbers
    policy = load_policy(
        config.policy, runtime, weights=checkpoint and checkpoint / "policy", stop_tokens=config.generation.stop_tokens
    )
    budget = config.training.microbatch_tokens
    evaluator = config.evaluation.reward
    loaded: Loaded = {}  # a reward model that two roles name
    return Models(
        policy=policy,
        reference=load_reference(config.reference, config.policy, policy, runtime),
        value=load_value(config.value, config.policy, policy, runtime, weights=checkpoint and checkpoint / "value"),
        scorer=(
            load_reward(config.reward, policy, runtime, microbatch_tokens=budget, loaded=loaded, modules=modules)
            if config.needs_reward
            else None
        ),
        evaluator=(
            load_reward(
                evaluator,
                policy,
                runtime,
                key="evaluation.reward",
                microbatch_tokens=budget,
                loaded=loaded,
                modules=modules,
            )
            if evaluator.given
            else None
        ),
        runtime=runtime,
    )
