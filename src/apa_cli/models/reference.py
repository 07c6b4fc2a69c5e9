"""The frozen initial policy, which KL is measured from: the policy's own weights, or a model of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apa_cli.config.schema import PolicyConfig, ReferenceConfig
from apa_cli.errors import UserError
from apa_cli.models.adapters import REFERENCE_ADAPTER
from apa_cli.models.device import Runtime, model_dtype
from apa_cli.models.identity import check_same_ids
from apa_cli.models.loading import freeze
from apa_cli.models.policy import Policy, base_of
from apa_cli.models.policy_loading import load_causal_lm


class Reference:
    """The frozen initial policy. With an adapter, the policy's own weights with the adapter off or as it started."""

    def __init__(self, policy: Policy, frozen: Policy | None = None) -> None:
        self._policy = policy
        self._frozen = frozen

    @property
    def shares_weights(self) -> bool:
        return self._frozen is None

    @property
    def frozen(self) -> Policy | None:
        """The model of its own, where it has one."""
        return self._frozen

    @contextlib.contextmanager
    def active(self) -> Iterator[Policy]:
        """The policy object whose forward is now the reference's."""
        if self._frozen is not None:
            yield self._frozen
        else:
            assert self._policy.adapters is not None
            with self._policy.adapters.use(REFERENCE_ADAPTER if self._policy.trained_adapter else None):
                yield self._policy

    @torch.no_grad()
    def logprobs(self, *batch: Tensor, temperature: float) -> Tensor:
        """log π_ref(a|s) of the response tokens, (B, T) float32."""
        with self.active() as model:
            return model.logprobs(*batch, temperature=temperature)[0]


def load_reference(
    config: ReferenceConfig,
    policy_config: PolicyConfig,
    policy: Policy,
    runtime: Runtime,
    *,
    trained: str = "the policy",
) -> Reference:
    """The reference: the policy's weights where an adapter makes that possible, otherwise a frozen model of its own."""
    if config.path is None and policy_config.adapter.enabled:
        return Reference(policy)
    key, path = "policy.path", policy_config.path
    if config.path is not None:
        key, path = "reference.path", config.path
        policy_config = replace(policy_config, revision=config.revision)  # policy.revision is of policy.path
        check_same_ids(key, path, policy.tokenizer, revision=config.revision)
    dtype = model_dtype(policy_config, runtime)
    model: Any = freeze(load_causal_lm(key, path, policy_config, dtype).to(runtime.device))
    if model.get_output_embeddings().weight.shape[0] != base_of(policy.model).get_output_embeddings().weight.shape[0]:
        raise UserError(key, f"{path} has another vocabulary than {trained}", "the two must share a tokenizer")
    return Reference(policy, Policy(model, policy.tokenizer, runtime))
