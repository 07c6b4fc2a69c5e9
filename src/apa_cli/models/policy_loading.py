"""The policy from its folder or the Hub, with its adapter, and with no sampling defaults of the model's own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from apa_cli.config.schema import AdapterConfig, PolicyConfig
from apa_cli.errors import UserError
from apa_cli.models.adapters import POLICY_ADAPTER, REFERENCE_ADAPTER, cast_adapters
from apa_cli.models.device import Runtime, model_dtype, trained_dtype
from apa_cli.models.loading import (
    check_vocabulary,
    first_line,
    load_config,
    load_pretrained,
    load_tokenizer,
    resolve_model_path,
)
from apa_cli.models.policy import Policy, base_of
from apa_cli.models.weight_files import check_adapter, fetch_adapter


def load_policy(
    config: PolicyConfig, runtime: Runtime, *, weights: Path | None = None, stop_tokens: Sequence[str] = ()
) -> Policy:
    """The policy on its device, in evaluation mode, ready to train.

    `weights`: a checkpoint's policy folder to take the trained weights from, instead of the configured start.
    """
    tokenizer = load_tokenizer(
        "policy.path", config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    adapted = config.adapter.enabled
    source = str(weights) if weights is not None and not adapted else config.path
    key = "checkpoint" if source != config.path else "policy.path"
    model = load_causal_lm(key, source, config, model_dtype(config, runtime))
    generation_config = model.generation_config
    if source == config.path:
        check_vocabulary(key, source, model, tokenizer)
    if adapted:
        model = attach_adapter(model, config, weights)
    model = model.to(runtime.device).eval()
    policy = Policy(model, tokenizer, runtime, trained_adapter=config.adapter.path is not None, stop_tokens=stop_tokens)
    policy.generation_config = _with_ends(generation_config, policy)
    if config.gradient_checkpointing:
        _enable_checkpointing(policy)
    _neutral_generation_config(policy)
    return policy


def load_causal_lm(key: str, path: str, config: PolicyConfig, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "revision": config.revision if key != "checkpoint" else None,
        # the name of trust is policy.path: a reference of its own is another repository
        "trust_remote_code": config.trust_remote_code and (key != "reference.path" or path == config.path),
    }
    model_config = load_config(key, path, **options)
    if getattr(model_config, "is_encoder_decoder", False):
        raise UserError(key, f"{path} is an encoder-decoder", "give a causal language model")
    return load_pretrained(
        AutoModelForCausalLM,
        key,
        path,
        config=model_config,
        dtype=dtype,
        attn_implementation=config.attn_implementation,
        **options,
    )


def attach_adapter(model: Any, config: PolicyConfig, weights: Path | None) -> Any:
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

    adapter = config.adapter
    key = "policy.adapter"
    try:
        if adapter.path is not None:
            kind = PeftConfig.from_pretrained(adapter_folder(adapter))
            if kind.is_prompt_learning or kind.is_adaption_prompt:
                raise UserError(
                    f"{key}.path", "this adapter adds to the prompt, not to the weights", "give a LoRA adapter"
                )
        if weights is not None:
            check_adapter("checkpoint", weights)
            peft_model = PeftModel.from_pretrained(model, str(weights), is_trainable=True)
        elif adapter.path is not None:
            peft_model = PeftModel.from_pretrained(model, adapter_folder(adapter), is_trainable=True)
        else:
            peft_model = get_peft_model(
                model,
                LoraConfig(
                    r=adapter.r,
                    lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft divides by r, any number will do
                    lora_dropout=adapter.dropout,
                    target_modules=adapter.target_modules,
                    task_type="CAUSAL_LM",
                ),
            )
        if adapter.path is not None:
            peft_model.load_adapter(adapter_folder(adapter), REFERENCE_ADAPTER, is_trainable=False)
    except (ValueError, OSError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        if weights is not None:
            problem = f"{weights} is no adapter of {config.path} ({first_line(error)})"
            raise UserError("checkpoint", problem, "give one trained on this base") from error
        where = f"{key}.path" if adapter.path is not None else f"{key}.target_modules"
        raise UserError(
            where,
            first_line(error),
            "give an adapter trained on this base"
            if adapter.path is not None
            else "name layers of this model, for instance policy.adapter.target_modules=[q_proj,v_proj]",
        ) from error
    cast_adapters(peft_model, trained_dtype(config), POLICY_ADAPTER, REFERENCE_ADAPTER)
    return peft_model


def adapter_folder(adapter: AdapterConfig) -> str:
    """The folder of policy.adapter.path. Raises UserError when it holds no PEFT adapter in safetensors."""
    key = "policy.adapter.path"
    assert adapter.path is not None
    folder = Path(resolve_model_path(key, adapter.path))
    if not folder.is_dir():
        folder = fetch_adapter(key, adapter.path, adapter.revision)
    check_adapter(key, folder)
    return str(folder)


def _enable_checkpointing(policy: Policy) -> None:
    if not getattr(base_of(policy.model), "supports_gradient_checkpointing", False):
        raise UserError("policy.gradient_checkpointing", "this model does not support it", "set it to false")
    options: dict[str, Any] = {"use_reentrant": False}
    if policy.adapters is not None:
        options["context_fn"] = policy.adapters.checkpoint_contexts
        policy.model.enable_input_require_grads()
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _with_ends(generation_config: Any, policy: Policy) -> Any:
    """The model's own settings; what it was trained to end with beyond them ends its responses elsewhere too."""
    if all(origin in ("EOS", "generation_config.json") for origin in policy.ends.values()):
        return generation_config
    own = copy.deepcopy(generation_config)
    own.eos_token_id = policy.eos_token_ids
    return own


def _neutral_generation_config(policy: Policy) -> None:
    """Models bring their own sampling defaults (top_k, penalties); none of them may reach a rollout unseen."""
    from transformers import GenerationConfig

    neutral = GenerationConfig(eos_token_id=policy.eos_token_ids or None, pad_token_id=policy.pad_token_id)
    policy.model.generation_config = neutral
    base_of(policy.model).generation_config = neutral
