"""The frozen initial policy, from which KL is measured: the policy's own weights, or a separate model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apa_cli.config.schema import PolicyConfig, ReferenceConfig
from apa_cli.errors import UserError
from apa_cli.models.adapters import POLICY_ADAPTER, REFERENCE_ADAPTER, VALUE_ADAPTER
from apa_cli.models.device import Runtime, model_dtype
from apa_cli.models.layout import Batch
from apa_cli.models.loading import freeze
from apa_cli.models.policy import Policy, base_of
from apa_cli.models.policy_loading import load_causal_lm
from apa_cli.models.token_ids import check_same_ids

CHUNK = 1 << 24  # numbers of a weight that are hashed at once


class Reference:
    """The frozen initial policy: `frozen`, or the policy's own weights with the adapter off or as it started."""

    def __init__(self, policy: Policy, frozen: Policy | None = None) -> None:
        self._policy, self.frozen = policy, frozen

    @property
    def shares_weights(self) -> bool:
        return self.frozen is None

    @contextlib.contextmanager
    def active(self) -> Iterator[Policy]:
        """The policy object whose forward pass is the reference's inside the context."""
        if self.frozen is not None:
            yield self.frozen
        else:
            assert self._policy.adapters is not None
            with self._policy.adapters.use(REFERENCE_ADAPTER if self._policy.trained_adapter else None):
                yield self._policy

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, temperature: float) -> Tensor:
        """log π_ref(a|s) of the response tokens, (B, T) float32."""
        with self.active() as model:
            return model.logprobs(batch, temperature=temperature)[0]


def load_reference(
    config: ReferenceConfig,
    policy_config: PolicyConfig,
    policy: Policy,
    runtime: Runtime,
    *,
    trained: str = "the policy",
) -> Reference:
    """Share the policy's weights if an adapter allows it, otherwise load a frozen model."""
    if config.path is None and policy_config.adapter.enabled:
        return Reference(policy)
    key, path = "policy.path", policy_config.path
    if config.path is not None:
        key, path = "reference.path", config.path
        policy_config = replace(policy_config, revision=config.revision)  # policy.revision belongs to policy.path
        check_same_ids(key, path, policy.tokenizer, revision=config.revision)
    dtype = model_dtype(policy_config, runtime)
    model: Any = freeze(load_causal_lm(key, path, policy_config, dtype).to(runtime.device))
    if model.get_output_embeddings().weight.shape[0] != base_of(policy.model).get_output_embeddings().weight.shape[0]:
        raise UserError(key, f"{path} has another vocabulary than {trained}", "the two must share a tokenizer")
    frozen = Policy(model, policy.tokenizer, runtime)
    frozen.ends, frozen.eos_token_ids = policy.ends, policy.eos_token_ids  # its responses end as the policy's do
    return Reference(policy, frozen)


def reference_fingerprint(reference: Reference) -> str:
    """SHA-256 of the reference's configuration and its weights in memory.

    If it shares the policy's weights, the adapters that it does not use are left out.
    """
    digest = hashlib.sha256()
    with reference.active() as policy:
        model: Any = policy.model
        unused = set() if policy is reference.frozen else {POLICY_ADAPTER, VALUE_ADAPTER}
        base = model.get_base_model() if policy.is_peft else model
        facts: dict[str, Any] = {"class": type(base).__name__, "config": base.config.to_dict()}
        if policy.is_peft and REFERENCE_ADAPTER in model.peft_config:
            facts["adapter"] = model.peft_config[REFERENCE_ADAPTER].to_dict()
        facts["config"].pop("_name_or_path", None)  # its place on disk
        digest.update(json.dumps(facts, sort_keys=True, default=_plain).encode())
        for name, tensor in model.state_dict().items():
            if unused.isdisjoint(name.split(".")):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                for part in tensor.detach().reshape(-1).split(CHUNK):
                    digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
