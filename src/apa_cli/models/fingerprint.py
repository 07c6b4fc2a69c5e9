"""What a frozen model computes, as a hash of all that decides it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from apa_cli.models.adapters import POLICY_ADAPTER, REFERENCE_ADAPTER, VALUE_ADAPTER
from apa_cli.models.reference import Reference

CHUNK = 1 << 24  # numbers of a weight that are looked at together


def reference_fingerprint(reference: Reference) -> str:
    """SHA-256 of the reference's configuration and of its weights as they are in memory, in their dtype.

    Where they are the policy's, the adapters that the reference does not use are left out.
    """
    digest = hashlib.sha256()
    with reference.active() as policy:
        model: Any = policy.model
        unused = set() if policy is reference.frozen else {POLICY_ADAPTER, VALUE_ADAPTER}
        base = model.get_base_model() if policy.is_peft else model
        facts: dict[str, Any] = {"class": type(base).__name__, "config": base.config.to_dict()}
        if policy.is_peft and REFERENCE_ADAPTER in model.peft_config:
            facts["adapter"] = model.peft_config[REFERENCE_ADAPTER].to_dict()
        facts["config"].pop("_name_or_path", None)  # where it was loaded from
        digest.update(json.dumps(facts, sort_keys=True, default=_plain).encode())
        for name, tensor in model.state_dict().items():
            if unused.isdisjoint(name.split(".")):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                for part in tensor.detach().reshape(-1).split(CHUNK):
                    digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
