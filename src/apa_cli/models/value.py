"""The critic V(s): a separate network, a head on the policy's trunk, or an adapter on the policy's base.

Each is called with a batch, and with the policy's hidden states if it `reads_policy`. Value t belongs to the state in
which response token t is chosen, the position that predicts it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from apa_cli.config.schema import PolicyConfig, ValueConfig
from apa_cli.errors import UserError
from apa_cli.models.adapter_loading import attach_value_adapter
from apa_cli.models.adapters import POLICY_ADAPTER, VALUE_ADAPTER
from apa_cli.models.device import Runtime, trained_dtype
from apa_cli.models.layout import Batch, layout_of
from apa_cli.models.limits import room_of
from apa_cli.models.loading import load_causal_config, load_pretrained, own_noise, refuse_quantized, resolve_model_path
from apa_cli.models.policy import Policy, train_without_noise
from apa_cli.models.token_ids import check_same_ids
from apa_cli.models.weight_files import HEAD_FILE, read_safetensors


class ValueHead(nn.Module):
    """hidden (…, H) -> value (…) in float32. Starts at zero, so that the first advantages are the scores."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)


class SharedValue(nn.Module):
    """A head on the hidden states of the policy's forward pass."""

    reads_policy: ClassVar[bool] = True

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = ValueHead(hidden_size)

    def forward(self, batch: Batch, *, hidden: Tensor | None) -> Tensor:
        """V at the response positions, (B, T) float32, from the policy's `hidden` states (B, T, H)."""
        assert hidden is not None
        return self.head(hidden)

    def save(self, folder: Path) -> None:
        save_head(self.head, folder)


class SeparateValue(nn.Module):
    """A separate transformer with a head."""

    reads_policy: ClassVar[bool] = False

    def __init__(self, trunk: Any, runtime: Runtime) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = ValueHead(hidden_size(trunk))
        self.compiled: Callable[..., Any] | None = None  # the trunk, for the update
        room = room_of(trunk, positions="position_ids" in inspect.signature(trunk.forward).parameters)
        self.room = room.tokens if room is not None else None
        self._runtime = runtime

    def train(self, mode: bool = True) -> SeparateValue:
        super().train(mode)
        if mode:
            train_without_noise(self.trunk)
        return self

    def forward(self, batch: Batch, *, hidden: Tensor | None = None) -> Tensor:
        """V at the response positions, (B, T) float32."""
        return self.head(self.hidden_states(batch))

    def hidden_states(self, batch: Batch) -> Tensor:
        """The head's input, (B, T, H)."""
        accepted = inspect.signature(self.trunk.forward).parameters
        layout = layout_of(batch, self.trunk)
        inputs = {name: value for name, value in layout.inputs.items() if name in accepted}
        trunk = self.compiled if self.training and self.compiled is not None else self.trunk
        with self._runtime.autocast():
            return layout.predicting(trunk(**inputs, use_cache=False).last_hidden_state)

    def save(self, folder: Path) -> None:
        with own_noise(self.trunk):
            self.trunk.save_pretrained(folder)
        save_head(self.head, folder)


class AdapterValue(nn.Module):
    """An adapter on the policy's base, which is held once, and a head."""

    reads_policy: ClassVar[bool] = False

    def __init__(self, policy: Policy, trained: list[nn.Parameter]) -> None:
        super().__init__()
        self.adapter = nn.ParameterList(trained)  # shared with the policy's model
        self.head = ValueHead(hidden_size(policy.model))
        self._policy = policy

    def forward(self, batch: Batch, *, hidden: Tensor | None = None) -> Tensor:
        """V at the response positions, (B, T) float32."""
        return self.head(self.hidden_states(batch))

    def hidden_states(self, batch: Batch) -> Tensor:
        """The head's input, (B, T, H)."""
        assert self._policy.adapters is not None
        with self._policy.adapters.use(VALUE_ADAPTER):
            return self._policy.hidden_states(batch)

    def save(self, folder: Path) -> None:
        """A PEFT folder like the policy's, with the head beside the adapter."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        model = self._policy.model
        tensors = get_peft_model_state_dict(model, adapter_name=VALUE_ADAPTER, save_embedding_layers=False)
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "adapter_model.safetensors")
        adapter_config = copy.deepcopy(model.peft_config[VALUE_ADAPTER])
        adapter_config.inference_mode = True
        adapter_config.save_pretrained(folder)
        save_head(self.head, folder)


Value = SharedValue | SeparateValue | AdapterValue


def load_value(
    config: ValueConfig, policy_config: PolicyConfig, policy: Policy, runtime: Runtime, *, weights: Path | None = None
) -> Value | None:
    """The critic on its device; None for kind none. `weights`: a checkpoint's value folder to resume from."""
    value: Value
    if config.kind == "none":
        return None
    if weights is not None and not weights.is_dir():
        raise UserError("value.kind", f"{config.kind}, but {weights.parent} holds no critic", "add value=none")
    if config.kind == "shared":
        value = SharedValue(hidden_size(policy.model))
    elif config.kind == "adapter":
        value = AdapterValue(policy, _attach_value_adapter(policy, policy_config, weights))
    else:
        key, path = ("value.path", config.path) if config.path else ("policy.path", policy_config.path)
        if config.path and weights is None:
            check_same_ids(key, config.path, policy.tokenizer, revision=config.revision)
        trunk, scores = _load_trunk(
            key, str(weights or path), policy_config, config.revision if config.path else policy_config.revision
        )
        value = SeparateValue(trunk, runtime)
        if scores is not None:
            start_from_scores(value.head, scores)
        vocabulary = policy.model.config.get_text_config().vocab_size
        if value.trunk.config.get_text_config().vocab_size < vocabulary:
            raise UserError(key, f"{path} has a smaller vocabulary than the policy", "the two must share a tokenizer")
        kept = Path(resolve_model_path(key, path))
        if weights is None and (kept / HEAD_FILE).is_file():  # final/value of an earlier run
            load_head(value.head, kept, key)
    if weights is not None:
        load_head(value.head, weights, "checkpoint")
    return value.to(runtime.device).eval()


def _attach_value_adapter(policy: Policy, config: PolicyConfig, weights: Path | None) -> list[nn.Parameter]:
    """Put the critic's adapter on the policy's model and return its trained tensors.

    PEFT freezes the other adapters when it selects one; here policy and critic both stay trainable.
    """
    model, switch = policy.model, policy.adapters
    assert switch is not None
    attach_value_adapter(model, config, weights)
    model.set_adapter(VALUE_ADAPTER)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.set_adapter(POLICY_ADAPTER)
    for p in (*policy.trainable_parameters(), *trained):
        p.requires_grad_(True)
    switch.refresh()
    model.to(policy.runtime.device)
    model.eval()
    return trained


def save_head(head: ValueHead, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / HEAD_FILE)


def load_head(head: ValueHead, folder: Path, key: str) -> None:
    head.load_state_dict(read_safetensors(key, folder / HEAD_FILE))


def start_from_scores(head: ValueHead, scores: nn.Linear) -> None:
    """Copy a reward model's head if it has one output of this width, so that values start as its scores."""
    if scores.weight.shape != head.linear.weight.shape:
        return
    with torch.no_grad():
        head.linear.weight.copy_(scores.weight)
        if scores.bias is not None:
            head.linear.bias.copy_(scores.bias)


def _load_trunk(key: str, path: str, config: PolicyConfig, revision: str | None) -> tuple[Any, nn.Linear | None]:
    """The transformer and, for a decoder-only sequence classifier, its score layer."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": config.trust_remote_code and (key == "policy.path" or path == config.path),
    }
    trunk_config = load_causal_config(key, path, **options)
    refuse_quantized(key, path, trunk_config, "add value=shared, value=adapter or value=none")
    scores = None
    classifies = any(name.endswith("ForSequenceClassification") for name in trunk_config.architectures or ())
    trunk = load_pretrained(
        AutoModelForSequenceClassification if classifies else AutoModel,
        key,
        path,
        config=trunk_config,
        dtype=trained_dtype(config),
        attn_implementation=config.attn_implementation,
        **options,
    )
    if classifies:
        if not isinstance(getattr(trunk, "score", None), nn.Linear):
            raise UserError(key, f"{path} is no decoder-only classifier", "give a causal one, or value.path=null")
        trunk.base_model.own_noise = trunk.own_noise
        trunk, scores = trunk.base_model, trunk.score
    if config.gradient_checkpointing and trunk.supports_gradient_checkpointing:
        trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return trunk, scores


def hidden_size(model: Any) -> int:
    """Width of the last hidden states; some OPT models project them down to the embeddings' width."""
    config = model.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)
