"""The keys of the models that a run trains and measures from: policy, reference, critic. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from apa_cli.config.fields import choice, number, plain, required

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(kw_only=True)
class AdapterConfig:
    r: int = number(0, "LoRA rank; 0 trains all weights", minimum=0)
    alpha: float = number(16.0, "LoRA scale: the update is multiplied by alpha / r", above=0)
    dropout: float = number(
        0.0, "dropout inside the adapter, including a loaded one; active in the update only", minimum=0, below=1
    )
    target_modules: Optional[list[str]] = plain(
        None, "names of the layers to adapt; null = PEFT's choice for the model, or all linear layers"
    )
    path: Optional[str] = plain(None, "trained PEFT adapter to start from; it also becomes the reference")
    revision: Optional[str] = plain(None, "Hub branch, tag or commit of policy.adapter.path")

    @property
    def enabled(self) -> bool:
        return self.r > 0 or self.path is not None


@dataclass(kw_only=True)
class PolicyConfig:
    path: str = required("model to align: local folder, Hub id, or builtin:reviews/policy")
    revision: Optional[str] = plain(None, "Hub branch, tag or commit of policy.path")
    dtype: str = choice(
        "auto",
        "weights of policy and critic: auto = trained weights in fp32, frozen weights as set by precision; bf16 = "
        "also Adam's states",
        choices=("auto", "fp32", "bf16"),
    )
    gradient_checkpointing: bool = plain(
        False, "recompute activations in the backward pass: less memory, about a third slower"
    )
    attn_implementation: Optional[str] = choice(
        None, "attention kernel; null = the library's choice for this model", choices=ATTENTION
    )
    trust_remote_code: bool = plain(False, "run Python code from the model's repository")
    adapter: AdapterConfig = field(default_factory=AdapterConfig)


@dataclass(kw_only=True)
class ReferenceConfig:
    path: Optional[str] = plain(None, "frozen model from which KL is measured; null = the initial policy")
    revision: Optional[str] = plain(None, "Hub branch, tag or commit of reference.path")


@dataclass(kw_only=True)
class ValueConfig:
    kind: str = choice(
        "separate",
        "critic: a network of its own, a head on the policy's trunk, an adapter on the policy's base, or none",
        choices=("separate", "shared", "adapter", "none"),
    )
    path: Optional[str] = plain(
        None, "initial weights of a separate critic, such as a reward model; null = the policy's"
    )
    revision: Optional[str] = plain(None, "Hub branch, tag or commit of value.path")
    warmup_iterations: int = number(0, "first iterations, in which only the critic is trained", minimum=0)
    keep: bool = plain(False, "also write the trained critic to final/value/")
