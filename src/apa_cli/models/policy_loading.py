"""Load the policy from a folder or the Hub, with its adapter and without the model's sampling defaults."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apa_cli.config.schema import PolicyConfig
from apa_cli.errors import UserError
from apa_cli.models.adapter_loading import adapter_folder, attach_adapter
from apa_cli.models.device import Runtime, model_dtype
from apa_cli.models.loading import (
    load_causal_config,
    load_pretrained,
    load_tokenizer,
    refuse_quantized,
    resolve_model_path,
)
from apa_cli.models.policy import Policy, base_of
from apa_cli.models.token_ids import (
    check_ids_agree,
    check_same_ids,
    check_vocabulary,
    has_tokenizer,
    known_ids,
    same_tokenizer,
)
from apa_cli.models.weight_files import HEAD_FILE

_OTHER_ROLE = re.compile(r"For(?:\w*Classification|QuestionAnswering|MultipleChoice)|RewardModel|DoubleHeads")

logger = logging.getLogger(__name__)


def load_policy(
    config: PolicyConfig, runtime: Runtime, *, weights: Path | None = None, stop_tokens: Sequence[str] = ()
) -> Policy:
    """The policy on its device, in evaluation mode, ready to train.

    `weights`: a checkpoint's policy folder with the trained weights.
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
    else:
        check_same_ids(key, source, tokenizer, trust_remote_code=config.trust_remote_code)
    if adapted:
        model = attach_adapter(model, config, weights)
        tokenizer = _tokenizer_of_adapter(config, tokenizer, weights, known_ids(model))
    model = model.to(runtime.device).eval()
    policy = Policy(model, tokenizer, runtime, trained_adapter=config.adapter.path is not None, stop_tokens=stop_tokens)
    policy.generation_config = _with_ends(generation_config, policy)
    if config.gradient_checkpointing:
        _enable_checkpointing(policy)
    _neutral_generation_config(policy)
    return policy


def _tokenizer_of_adapter(config: PolicyConfig, tokenizer: Any, weights: Path | None, known: int) -> Any:
    """The adapter's tokenizer and chat template, if they differ from its base's."""
    if weights is None and config.adapter.path is None:
        return tokenizer
    key, path = "checkpoint", str(weights)
    if weights is None:
        key, path = "policy.adapter.path", adapter_folder(config.adapter)
    if not has_tokenizer(key, path):
        return tokenizer
    own = load_tokenizer(key, path, trust_remote_code=config.trust_remote_code)
    check_ids_agree(key, path, own, tokenizer)
    alike = all(getattr(own, name) == getattr(tokenizer, name) for name in ("chat_template", "special_tokens_map"))
    if alike and same_tokenizer(own, tokenizer):
        return tokenizer
    added = max(own.get_vocab().values())
    if added >= known:
        problem = f"its tokenizer has the id {added}, and the adapter brings no rows beyond its base's {known}"
        raise UserError(key, problem, "save the adapter with save_embedding_layers=True")
    logger.info("the tokenizer and chat template are the adapter's own, from %s", path)
    return own


def load_causal_lm(key: str, path: str, config: PolicyConfig, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "revision": config.revision if key != "checkpoint" else None,
        # policy.trust_remote_code covers policy.path only
        "trust_remote_code": config.trust_remote_code and (key != "reference.path" or path == config.path),
    }
    model_config = load_causal_config(key, path, **options)
    _refuse_other_roles(key, path, model_config)
    if not config.adapter.enabled and key != "reference.path":
        refuse_quantized(key, path, model_config, "add policy=lora, or give the model in fp32, bf16 or fp16")
    return load_pretrained(
        AutoModelForCausalLM,
        key,
        path,
        config=model_config,
        dtype=dtype,
        attn_implementation=config.attn_implementation,
        **options,
    )


def _refuse_other_roles(key: str, path: str, config: Any) -> None:
    """Refuse classifiers and critics: with tied embeddings they would load and write nonsense."""
    named = [str(kind) for kind in config.architectures or ()]
    if named and all(_OTHER_ROLE.search(kind) for kind in named):
        raise UserError(key, f"{path} is a {named[0]}, which writes no text", "give a causal language model")
    if (Path(resolve_model_path(key, path)) / HEAD_FILE).is_file():
        problem = f"{path} is a critic ({HEAD_FILE} lies in it), which writes no text"
        raise UserError(key, problem, "give the policy, such as the folder policy/ beside it")


def _enable_checkpointing(policy: Policy) -> None:
    if not getattr(base_of(policy.model), "supports_gradient_checkpointing", False):
        raise UserError("policy.gradient_checkpointing", "this model does not support it", "set it to false")
    options: dict[str, Any] = {"use_reentrant": False}
    if policy.adapters is not None:
        options["context_fn"] = policy.adapters.checkpoint_contexts
        policy.model.enable_input_require_grads()
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _with_ends(generation_config: Any, policy: Policy) -> Any:
    """The model's settings to export. Further end tokens of the training end responses elsewhere too."""
    if all(origin in ("EOS", "generation_config.json") for origin in policy.ends.values()):
        return generation_config
    own = copy.deepcopy(generation_config)
    own.eos_token_id = policy.eos_token_ids
    return own


def _neutral_generation_config(policy: Policy) -> None:
    """Remove the model's sampling defaults (top_k, penalties), which would change rollouts unseen."""
    from transformers import GenerationConfig

    neutral = GenerationConfig(eos_token_id=policy.eos_token_ids or None, pad_token_id=policy.pad_token_id)
    policy.model.generation_config = neutral
    base_of(policy.model).generation_config = neutral
