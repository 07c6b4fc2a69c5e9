"""Put adapters on the policy's model: a new or trained one for the policy, and one for the critic."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from apa_cli.config.schema import AdapterConfig, PolicyConfig
from apa_cli.errors import UserError
from apa_cli.models.adapter_base import base_unchanged, check_base, check_kind
from apa_cli.models.adapters import POLICY_ADAPTER, REFERENCE_ADAPTER, VALUE_ADAPTER, cast_adapters
from apa_cli.models.device import trained_dtype
from apa_cli.models.loading import first_line, resolve_model_path
from apa_cli.models.weight_files import ADAPTER_WEIGHTS, check_adapter, fetch_adapter

logger = logging.getLogger(__name__)

KEY = "policy.adapter"
MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2")  # their kernels bypass adapters of READ_BY_KERNELS
EXPERT_LAYERS = ("gate_proj", "up_proj", "down_proj", "gate", "w1", "w2", "w3")
READ_BY_KERNELS = ["out_proj", "conv1d"]


def attach_adapter(model: Any, config: PolicyConfig, weights: Path | None) -> Any:
    """The PEFT model. `weights`: a checkpoint's policy folder with the adapter.

    The adapter of policy.adapter.path is loaded twice: one copy is trained, the other is the reference.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    adapter = config.adapter
    folder = str(weights) if weights is not None else adapter_folder(adapter) if adapter.path is not None else None
    key = "checkpoint" if weights is not None else f"{KEY}.path"
    try:
        if folder is None:
            key = f"{KEY}.target_modules"
            peft_model: Any = get_peft_model(
                model,
                LoraConfig(
                    r=adapter.r,
                    lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft divides by r, any number will do
                    lora_dropout=adapter.dropout,
                    target_modules=adapter.target_modules or _layers(model),
                    exclude_modules=READ_BY_KERNELS if model.config.model_type in MAMBA else None,
                    task_type="CAUSAL_LM",
                ),
            )
        else:
            check_adapter(key, Path(folder))
            own = adapter_settings(key, folder, adapter.dropout)
            check_base(key, folder, own.base_model_name_or_path, config.path)
            brings_embeddings = _take_vocabulary(key, model, Path(folder))
            with base_unchanged(key, folder, model):
                if model.device.type == "meta":  # shapes only: no initialisation from weights
                    own.init_lora_weights, own.inference_mode = True, False
                    peft_model = get_peft_model(model, own)
                else:
                    peft_model = PeftModel.from_pretrained(model, folder, config=own, is_trainable=True)
            peft_model.brings_embeddings = brings_embeddings  # saved with it again
        if adapter.path is not None:
            add_trained(peft_model, REFERENCE_ADAPTER, adapter_folder(adapter), dropout=0.0)
    except (ValueError, OSError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        if weights is not None:
            problem = f"{weights} is no adapter of {config.path} ({first_line(error)})"
            raise UserError("checkpoint", problem, "give one trained on this base") from error
        remedy = "give an adapter trained on this base"
        if adapter.path is None:
            remedy = "name layers of this model, for instance policy.adapter.target_modules=[q_proj,v_proj]"
        raise UserError(key, first_line(error), remedy) from error
    cast_adapters(peft_model, trained_dtype(config), POLICY_ADAPTER, REFERENCE_ADAPTER)
    return peft_model


def attach_value_adapter(model: Any, config: PolicyConfig, weights: Path | None) -> None:
    """Add the critic's adapter to the policy's model, as the policy's started or from a checkpoint's folder."""
    if weights is not None:
        check_adapter("checkpoint", weights, critic=True)
        add_trained(model, VALUE_ADAPTER, str(weights), dropout=config.adapter.dropout, train=True)
    elif config.adapter.path is not None:
        add_trained(model, VALUE_ADAPTER, adapter_folder(config.adapter), dropout=config.adapter.dropout, train=True)
    else:
        model.add_adapter(VALUE_ADAPTER, copy.deepcopy(model.peft_config[POLICY_ADAPTER]))
    cast_adapters(model, trained_dtype(config), VALUE_ADAPTER)


def add_trained(model: Any, name: str, folder: str, *, dropout: float, train: bool = False) -> None:
    """Add an adapter to a PEFT model from its folder; on the meta device only its shapes."""
    settings = adapter_settings(f"{KEY}.path", folder, dropout)
    settings.inference_mode = not train
    model.add_adapter(name, settings)
    if model.device.type != "meta":
        model.load_adapter(folder, name, is_trainable=train)
    if train:
        model.set_requires_grad(name)


def _take_vocabulary(key: str, model: Any, folder: Path) -> bool:
    """Whether the adapter holds embeddings. If so, the base is resized to their number of rows.

    Raises UserError if that number differs and the adapter lacks the rows of one end, whose trained values are unknown.
    """
    found = list(_embeddings(model, folder))
    whole = {part for name, _ in found if "lora_" not in name for part in name.split(".")}
    rows = max((tokens for _, tokens in found), default=0)
    old = model.get_input_embeddings().weight.shape[0]
    if found and rows != old:
        logger.info("the embeddings have %s rows instead of %s, as the adapter was trained with", rows, old)
        model.resize_token_embeddings(rows, mean_resizing=False)
        ends = [model.get_input_embeddings(), model.get_output_embeddings()]
        tied = ends[1] is None or ends[0].weight is ends[1].weight
        names = [name.rpartition(".")[2] for name, layer in model.named_modules() if any(layer is end for end in ends)]
        missing = [name for name in names if name not in whole]
        if missing and not (tied and len(missing) < len(names)):
            sizes = f"{folder} has {rows:,} tokens and its base {old:,}"
            problem = f"{sizes}, and it does not hold the rows of {missing[-1]}"
            remedy = f"train or save it with modules_to_save=[{', '.join(names)}]"
            raise UserError(key, problem, remedy)
    return any("lora_" not in name for name, _ in found)


def _embeddings(model: Any, folder: Path) -> Iterator[tuple[str, int]]:
    """The adapter's tensors that belong to the model's embeddings, with the number of tokens in each."""
    from safetensors import safe_open

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    leaves = {name.rpartition(".")[2] for name, layer in model.named_modules() if any(layer is end for end in ends)}
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as tensors:  # type: ignore[no-untyped-call]
        for name in list(tensors.keys()):  # not a mapping
            shape = tensors.get_slice(name).get_shape()
            if leaves.isdisjoint(name.split(".")) or len(shape) != 2:
                continue
            if name.endswith("lora_embedding_A"):
                yield name, shape[1]
            elif "lora_B" in name or "lora_" not in name:
                yield name, shape[0]


def adapter_settings(key: str, folder: str, dropout: float) -> Any:
    """The PEFT configuration in `folder`, with `dropout` instead of its own."""
    from peft import PeftConfig

    settings: Any = PeftConfig.from_pretrained(folder)
    check_kind(key, folder, settings)
    names = [field.name for field in fields(settings) if field.name.endswith("dropout")]
    for name in names:
        setattr(settings, name, 0.0)
    usual = [name for name in names if name not in ("rank_dropout", "module_dropout")]
    if dropout and not usual:
        problem = f"{dropout:g}, but a {settings.peft_type.value} adapter has no dropout of this kind"
        raise UserError(f"{KEY}.dropout", problem, "leave it at 0")
    for name in usual:
        setattr(settings, name, dropout)
    return settings


def adapter_folder(adapter: AdapterConfig) -> str:
    """The folder of policy.adapter.path. Raises UserError unless it holds a PEFT adapter in safetensors."""
    key = f"{KEY}.path"
    assert adapter.path is not None
    folder = Path(resolve_model_path(key, adapter.path))
    if not folder.is_dir():
        folder = fetch_adapter(key, adapter.path, adapter.revision)
    check_adapter(key, folder)
    return str(folder)


def _layers(model: Any) -> Any:
    """PEFT's choice for this architecture, else every linear layer except the head.

    Experts in a single tensor are excluded, with all layers whose names PEFT would take for theirs.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    from transformers.pytorch_utils import Conv1D

    chosen = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    if chosen is not None:
        return chosen
    experts = any("experts" in name and weight.dim() == 3 for name, weight in model.named_parameters())
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (torch.nn.Linear, Conv1D))
        and layer is not model.get_output_embeddings()
        and not (experts and name.rpartition(".")[2] in EXPERT_LAYERS)
    ]
