"""The keys of the models that a run trains and measures from: policy, reference, critic. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from apa_cli.config.fields import choice, items, number, required, switch, text

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(kw_only=True)
class AdapterConfig:
    r: int = number(0, "LoRA rank; 0 trains all weights", minimum=0)
    alpha: float = number(16.0, "LoRA scale: the update is multiplied by alpha / r", above=0)
    dropout: float = number(
        0.0, "dropout inside the adapter, a trained one too, active in the update only", minimum=0, below=1
    )
    target_modules: Optional[list[str]] = items(
        None, "layers to adapt, by name; null = peft's choice for the model, or all linear layers"
    )
    path: Optional[str] = text(None, "start from this trained PEFT adapter, which is then the reference too")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of policy.adapter.path")

    @property
    def enabled(self) -> bool:
        return self.r > 0 or self.path is not None


@dataclass(kw_only=True)
class PolicyConfig:
    path: str = required("model to align: local folder, Hub id, or builtin:reviews/policy")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of policy.path")
    dtype: str = choice(
        "auto",
        "policy's and critic's weights: auto = trained fp32, frozen as precision says; bf16 = Adam's states too",
        choices=("auto", "fp32", "bf16"),
    )
    gradient_checkpointing: bool = switch(False, "recompute activations in backward: less memory, about a third slower")
    attn_implementation: Optional[str] = choice(
        None, "attention kernel; null = the library's choice for this model", choices=ATTENTION
    )
    trust_remote_code: bool = switch(False, "run Python code that the model's repository carries")
    adapter: AdapterConfig = field(default_factory=AdapterConfig)


@dataclass(kw_only=True)
class ReferenceConfig:
    path: Optional[str] = text(None, "frozen model that KL is measured from; null = the policy as it starts")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of reference.path")


@dataclass(kw_only=True)
class ValueConfig:
    kind: str = choice(
        "separate",
        "critic: its own network, a head on the policy's trunk, its own adapter on the policy's base, or no critic",
        choices=("separate", "shared", "adapter", "none"),
    )
    path: Optional[str] = text(None, "where a separate critic starts, may be a reward model; null = from the policy")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of value.path")
    warmup_iterations: int = number(0, "first iterations, in which the critic alone learns", minimum=0)
    keep: bool = switch(False, "write the trained critic to final/value/ too")
