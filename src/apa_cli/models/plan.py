"""What a run will hold in memory: arithmetic on numbers alone.

Weights, gradients and optimizer states are certain. The KV cache is at most what is said here. Activations and logits
are estimates: of causal transformers whose attention keeps no scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apa_cli.errors import UserError

LOGIT_COPIES = 3  # float32 logits of one step of generation: as sampled, for the log-prob, for the entropy
HEAD_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}  # logits that the update keeps for its backward
HIDDEN_KEPT = 12  # tensors of the hidden width that a layer keeps for its backward, token by token
MLP_KEPT = {"plain": 2, "gated": 4, "gelu_new": 5}  # and tensors of the MLP's width; gelu_new is spelt out step by step
BF16_EXTRA = 1.25  # norms compute in float32 under autocast, and keep it


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a transformer that decide what it keeps while it computes."""

    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    intermediate: int
    mlp: str  # a name in MLP_KEPT
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class Role:
    """One model of the run. What it borrows from another role is counted there."""

    name: str
    weights: str  # whose
    parameters: int = 0  # of its own
    parameter_bytes: int = 0
    trained: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is needed for a while, and from which settings."""

    name: str
    of: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    roles: tuple[Role, ...]
    estimates: tuple[Estimate, ...]
    kv_row_bytes: int  # the least KV cache there can be: one response
    device: str
    available_bytes: int | None  # None where the system does not say

    @property
    def certain_bytes(self) -> int:
        """Weights, gradients and optimizer states."""
        return sum(role.bytes for role in self.roles)

    @property
    def expected_bytes(self) -> int:
        """With the largest of what is needed in turn: generation's cache, or the update's activations."""
        return self.certain_bytes + max((estimate.bytes for estimate in self.estimates), default=0)


def kv_cache_bytes(shape: Shape, *, rows: int, tokens: int, element_bytes: int) -> int:
    """Keys and values of `rows` sequences of `tokens` tokens, in every layer."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * rows * tokens * element_bytes


def activation_bytes(shape: Shape, *, tokens: int, bf16: bool, checkpointing: bool, residual_bytes: int) -> int:
    """What `tokens` tokens leave behind for their backward. Checkpointing keeps the residual stream, into every
    layer and through the last norm, and one layer at a time."""
    per_layer = HIDDEN_KEPT * shape.hidden + MLP_KEPT[shape.mlp] * shape.intermediate
    layer = int(tokens * per_layer * (2 * BF16_EXTRA if bf16 else 4))
    if not checkpointing:
        return shape.layers * layer
    return (shape.layers + 2) * tokens * shape.hidden * residual_bytes + layer


def sampling_logits_bytes(shape: Shape, *, rows: int) -> int:
    """Logits of one step of generation."""
    return LOGIT_COPIES * rows * shape.vocabulary * 4


def head_logits_bytes(shape: Shape, *, tokens: int, device_type: str) -> int:
    """Logits that the update holds of one micro-batch's response tokens."""
    return min(tokens * shape.vocabulary * 4, HEAD_BYTES[device_type])


def check_fits(plan: Plan, *, remedies: Sequence[str]) -> str | None:
    """What to warn of, where estimates say that memory may not do. Raises UserError where it certainly does not."""
    if plan.available_bytes is None:
        return None
    free = f"{gib(plan.available_bytes)} free on {plan.device}"
    least = plan.certain_bytes + plan.kv_row_bytes
    if least > plan.available_bytes:
        largest = max(plan.roles, key=lambda role: role.bytes)
        raise UserError(
            "policy.path",
            f"weights, gradients, optimizer states and one response's KV cache take {gib(least)}, "
            f"and there are {free}; the largest part is the {largest.name} with {gib(largest.bytes)}",
            ", ".join([*remedies, "or a smaller model"]),
        )
    if plan.expected_bytes > plan.available_bytes:
        most = max(plan.estimates, key=lambda estimate: estimate.bytes)
        return (
            f"about {gib(plan.expected_bytes)} may be needed, most of it beyond the models for {most.name}, "
            f"and there are {free}: should memory run out, lower training.microbatch_tokens or rollout.batch_size, "
            "or set policy.gradient_checkpointing=true"
        )
    return None


def gib(number: float) -> str:
    """3.0 GiB, 12 MiB, 0.3 KiB."""
    for unit in ("GiB", "MiB"):
        size = 1 << (30 if unit == "GiB" else 20)
        if number >= size:
            return f"{number / size:.1f} {unit}" if number < 10 * size else f"{number / size:,.0f} {unit}"
    return f"{number / 1024:.1f} KiB"
