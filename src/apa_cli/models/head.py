"""Take a causal language model apart into trunk and output head, to compute only the logits that are needed.

What an architecture does between head and logits is found by a trial at loading. A model that the trial does not
explain is called whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apa_cli.algorithms import head_logits, head_logprobs, response_logprobs
from apa_cli.models.device import Runtime

SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")  # configuration fields that multiply or divide
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
HEIGHTS = (0.1, 1.0, 8.0, 40.0)  # spread of the trial's raw logits per token, below and above a soft cap
CHUNK_BYTES = 1 << 26  # logits per call of a head that is not a plain matrix


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """The output module and what the architecture does to its logits: softcap · tanh(scale · raw / softcap)."""

    module: nn.Module
    scale: float
    softcap: float | None
    dtype: torch.dtype  # of the product
    vocabulary: int

    def logprobs(self, hidden: Tensor, ids: Tensor, *, temperature: float, contexts: Any = None) -> Tensor:
        """log π of ids (N,) after hidden (N, H), float32. `contexts`: context_fn of torch's checkpoint."""
        if type(self.module) is nn.Linear:
            return head_logprobs(
                hidden.to(self.dtype),
                self.module.weight,
                self.module.bias,
                ids,
                temperature=temperature,
                scale=self.scale,
                softcap=self.softcap,
            )

        def chunk(hidden: Tensor, ids: Tensor) -> Tensor:
            return response_logprobs(self._logits(hidden)[None], ids[None], temperature=temperature)[0]

        if not torch.is_grad_enabled():
            parts = [chunk(hidden[tokens], ids[tokens]) for tokens in self.chunks(len(ids))]
        else:
            options = {} if contexts is None else {"context_fn": contexts}
            parts = [
                checkpoint(chunk, hidden[tokens], ids[tokens], use_reentrant=False, **options)
                for tokens in self.chunks(len(ids))
            ]
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of a few tokens (n, H)."""
        if type(self.module) is nn.Linear:
            return head_logits(
                hidden.to(self.dtype), self.module.weight, self.module.bias, scale=self.scale, softcap=self.softcap
            )
        return self._logits(hidden)

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Slices of tokens whose logits stay within CHUNK_BYTES."""
        step = max(1, CHUNK_BYTES // (4 * self.vocabulary))
        return (slice(start, start + step) for start in range(0, tokens, step))

    def _logits(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, dtype=self.dtype, enabled=self.dtype == torch.bfloat16):
            raw = self.module(hidden).float()
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The trunk and the head of a model."""

    trunk: Callable[..., Any]
    accepts: frozenset[str]
    head: OutputHead

    def hidden(self, inputs: dict[str, Any]) -> Tensor:
        """The head's input at every position, (B, L, H)."""
        known = {name: value for name, value in inputs.items() if name in self.accepts}
        hidden: Tensor = self.trunk(**known, use_cache=False).last_hidden_state
        return hidden


@torch.no_grad()
def take_apart(model: Any, base: Any, inputs: dict[str, Any], runtime: Runtime) -> Parts | None:
    """Trunk and head of `base`, the transformers model inside `model`; None if they do not explain its logits.

    `inputs`: a batch for the trial. One pass of the whole model replaces the head's input by random hidden states of
    several scales. The head must give the same logits for them, and the trunk the replaced hidden states.
    """
    trunk, module = base.base_model, base.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if trunk is base or not isinstance(weight, Tensor) or not weight.is_floating_point():
        return None
    if any(_is_more_than_weights(config) for config in getattr(model, "peft_config", {}).values()):
        return None
    seen: list[Tensor] = []
    probe: list[Tensor] = []

    def replace(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen.append(args[0])
        probe.append(_probe_hidden(args[0], module, runtime))
        return (probe[-1],)

    handle = module.register_forward_pre_hook(replace)
    try:
        with runtime.autocast():
            logits = model(**inputs, use_cache=False).logits.float()  # (B, L, V)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].ndim != 3:
        return None
    dtype = torch.bfloat16 if runtime.bf16 else weight.dtype
    accepts = frozenset(inspect.signature(trunk.forward).parameters)
    for scale, softcap in _candidates(base.config):
        head = OutputHead(module=module, scale=scale, softcap=softcap, dtype=dtype, vocabulary=logits.shape[-1])
        parts = Parts(trunk=trunk, accepts=accepts, head=head)
        explained = head.logits(probe[0].flatten(0, 1)).unflatten(0, probe[0].shape[:2])
        if not _close(explained, logits, dtype):
            continue
        with runtime.autocast():
            hidden = parts.hidden(inputs)
        attended = inputs["attention_mask"].bool()
        return parts if hidden.shape == seen[0].shape and _close(hidden[attended], seen[0][attended], dtype) else None
    return None


def _candidates(config: Any) -> Iterator[tuple[float, float | None]]:
    """(scale, softcap) pairs that this configuration may mean, those without a soft cap last."""
    text = config.get_text_config()
    scales = [float(v) for name in SCALES if isinstance(v := getattr(text, name, None), int | float) and v > 0]
    softcaps = [float(v) for name in SOFTCAPS if isinstance(v := getattr(text, name, None), int | float) and v > 0]
    for softcap in (*softcaps, None):
        for scale in (1.0, *scales, *(1 / s for s in scales)):
            yield scale, softcap


def _probe_hidden(like: Tensor, module: nn.Module, runtime: Runtime) -> Tensor:
    """Random hidden states whose raw logits spread by HEIGHTS, without the global random state."""
    numbers = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    with torch.no_grad(), runtime.autocast():
        spread = module.forward(numbers).float().std().clamp(min=1e-6)  # `forward`: past the hook
    heights = torch.tensor(HEIGHTS, device=like.device).repeat(like.shape[1] // len(HEIGHTS) + 1)[: like.shape[1]]
    return (numbers.float() * (heights / spread)[:, None]).to(like.dtype)


def _close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance)


def _is_more_than_weights(config: Any) -> bool:
    """Whether PEFT's forward pass does more: adapters that change the input, or act at some positions only."""
    return bool(config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None))
