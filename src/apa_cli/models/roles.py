"""The models of a run, each loaded once in its role."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apa_cli.config.schema import TrainConfig
from apa_cli.models.device import Runtime
from apa_cli.models.layout import longest_row
from apa_cli.models.policy import Policy
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.reference import Reference, load_reference
from apa_cli.models.token_ids import known_ids
from apa_cli.models.value import SeparateValue, Value, load_value


@dataclass(frozen=True, kw_only=True)
class Models:
    policy: Policy
    reference: Reference
    value: Value | None  # no critic
    runtime: Runtime

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of policy and critic, by readable names."""
        policy = {f"policy {name}": parameter for name, parameter in self.policy.model.named_parameters()}
        critic = self.value.named_parameters() if self.value is not None else ()
        return policy | {f"critic {name}": parameter for name, parameter in critic}

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Policy and critic in training mode, without unrequested dropout."""
        with self.policy.training():
            if self.value is not None:
                self.value.train()
            try:
                yield
            finally:
                if self.value is not None:
                    self.value.eval()

    def limits(self) -> dict[str, tuple[int | None, int]]:
        """The most tokens, if known, and the number of ids of each model that reads the policy's ids."""
        found = {"policy": (self.policy.room, self.policy.known_ids)}
        if (frozen := self.reference.frozen) is not None:
            found["reference"] = (frozen.room, frozen.known_ids)
        if isinstance(self.value, SeparateValue):
            found["critic"] = (self.value.room, known_ids(self.value.trunk))
        return found

    def longest_row(self) -> int | None:
        """The most tokens of a row in the packed layout, None if there is no limit."""
        models = [model for model in self.parts().values() if model is not None]
        limits = [longest_row(model) for model in models] + [room for room, _ in self.limits().values()]
        return min((limit for limit in limits if limit is not None), default=None)

    def parts(self) -> dict[str, Any]:
        """The transformers model of each role, None if it shares another's."""
        frozen = self.reference.frozen
        return {
            "policy": self.policy.model,
            "reference": frozen.model if frozen else None,
            "value": getattr(self.value, "trunk", None),
        }


def load_models(config: TrainConfig, runtime: Runtime, *, checkpoint: Path | None = None) -> Models:
    """Load every role of `config`; trained weights from `checkpoint` (a checkpoint's folder) where given."""
    torch.manual_seed(config.seed)  # new adapters are initialised randomly
    policy = load_policy(
        config.policy, runtime, weights=checkpoint and checkpoint / "policy", stop_tokens=config.generation.stop_tokens
    )
    return Models(
        policy=policy,
        reference=load_reference(config.reference, config.policy, policy, runtime),
        value=load_value(config.value, config.policy, policy, runtime, weights=checkpoint and checkpoint / "value"),
        runtime=runtime,
    )
