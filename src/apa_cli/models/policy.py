"""The policy and its reference: which weights they are, and how log-probs come out of them."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from apa_cli.algorithms import position_ids, response_logits, response_logprobs
from apa_cli.config.schema import AdapterConfig, PolicyConfig, ReferenceConfig
from apa_cli.errors import UserError
from apa_cli.models.adapters import POLICY_ADAPTER, REFERENCE_ADAPTER, AdapterSwitch, cast_adapters
from apa_cli.models.device import Runtime, model_dtype, trained_dtype
from apa_cli.models.end_tokens import end_tokens
from apa_cli.models.head import OutputHead, take_apart
from apa_cli.models.loading import (
    check_vocabulary,
    first_line,
    freeze,
    load_config,
    load_pretrained,
    load_tokenizer,
    resolve_model_path,
)
from apa_cli.models.weight_files import check_adapter, fetch_adapter

logger = logging.getLogger(__name__)


class Policy:
    """A causal language model with its tokenizer, and the adapter if there is one.

    `eos_token_ids` are all ids that end a response, and `ends` says where each comes from; `pad_token_id` only fills
    rectangles: every mask is positional, so it may equal an EOS without hiding one. `parts` is the model's trunk and
    head where the two explain it, found by a small trial unless `apart` says no.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        runtime: Runtime,
        *,
        trained_adapter: bool = False,
        apart: bool = True,
        stop_tokens: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.runtime = runtime
        self.trained_adapter = trained_adapter
        self.generation_config = model.generation_config  # the model's own, put back into what is exported
        self.ends = end_tokens(model, tokenizer, stop_tokens)
        self.eos_token_ids = list(self.ends)
        self.pad_token_id = _pad_token_id(
            tokenizer, self.eos_token_ids, _base(model).config.get_text_config().vocab_size
        )
        signature = inspect.signature(_base(model).forward).parameters
        self._accepts = {name: name in signature for name in ("position_ids", "logits_to_keep")}
        self.adapters = AdapterSwitch(model) if self.is_peft else None
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self.parts = take_apart(model, _base(model), self._inputs(*trial_batch(model)), runtime) if apart else None
        self.compiled: Callable[..., Any] | None = None  # the trunk, for the update
        if apart and self.parts is None:
            logger.info("%s is called whole: its logits are not its head's alone", type(_base(model)).__name__)

    @property
    def is_peft(self) -> bool:
        return hasattr(self.model, "peft_config")

    @property
    def room(self) -> int | None:
        """Prompt and response tokens that the model was made for, where its configuration says so."""
        limit = getattr(_base(self.model).config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    def describe_ends(self) -> str:
        """What ends a response, for the log."""
        names = self.tokenizer.convert_ids_to_tokens(self.eos_token_ids)
        return ", ".join(f"{name} ({origin})" for name, origin in zip(names, self.ends.values(), strict=True))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the policy trains; an adapter that a critic has on the same model is not among it."""
        return self._trained

    def logprobs(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
        *,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """log π(a|s) of the response tokens, (B, T) float32, and the head's input there, (B, T, H).

        A token that does not count is given 0: where the model comes apart, its logits are never made.
        """
        batch = prompt_ids, prompt_mask, response_ids, response_mask
        if self.parts is None:
            logits, hidden = self.response_forward(*batch)
            logprobs = response_logprobs(logits, response_ids, temperature=temperature)
            return torch.where(response_mask, logprobs, 0.0), hidden
        hidden = self.hidden_states(*batch)  # (B, T, H)
        counted = response_mask.flatten().nonzero().squeeze(-1)  # (N,)
        logprobs = self.parts.head.logprobs(
            hidden.flatten(0, 1).index_select(0, counted),
            response_ids.flatten()[counted],
            temperature=temperature,
            contexts=self.adapters and self.adapters.checkpoint_contexts,
        )
        whole = torch.zeros(response_mask.numel(), dtype=logprobs.dtype, device=logprobs.device)
        return whole.index_put((counted,), logprobs).view_as(response_mask), hidden

    def hidden_states(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
    ) -> Tensor:
        """What the head reads at the positions that predict the response tokens, (B, T, H)."""
        batch = prompt_ids, prompt_mask, response_ids, response_mask
        if self.parts is None:
            return self.response_forward(*batch)[1]
        with self.runtime.autocast():
            return response_logits(self.parts.hidden(self._inputs(*batch)), response_ids.shape[1])

    @torch.no_grad()
    def counted_logits(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
    ) -> Callable[[slice], Tensor]:
        """Logits of the counted tokens in the mask's order, made when asked for: slice of n tokens -> (n, V)."""
        batch = prompt_ids, prompt_mask, response_ids, response_mask
        if self.parts is None:
            logits = self.response_forward(*batch)[0][response_mask]  # (N, V)
            return lambda tokens: logits[tokens]
        head: OutputHead = self.parts.head
        hidden = self.hidden_states(*batch)[response_mask]  # (N, H)
        return lambda tokens: head.logits(hidden[tokens])

    def response_forward(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The whole model at once: logits (B, T, V) that predict the response tokens, and the head's input there."""
        T = response_ids.shape[1]
        inputs = self._inputs(prompt_ids, prompt_mask, response_ids, response_mask)  # (B, L)
        if self._accepts["logits_to_keep"]:
            inputs["logits_to_keep"] = T + 1
        captured: list[Tensor] = []
        head = _base(self.model).get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
        try:
            with self.runtime.autocast():
                logits = self.model(**inputs, use_cache=False).logits  # (B, T + 1 or L, V)
        finally:
            handle.remove()
        return response_logits(logits, T), response_logits(captured[0], T)

    def _inputs(self, *batch: Tensor) -> dict[str, Any]:
        inputs = model_inputs(*batch)
        if not self._accepts["position_ids"]:
            del inputs["position_ids"]
        return inputs

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Train mode, which gradient checkpointing and adapter dropout need; the base's dropouts are all 0.

        The trunk is the compiled one, where there is one.
        """
        parts = self.parts
        if parts is not None and self.compiled is not None:
            self.parts = replace(parts, trunk=self.compiled)
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()
            self.parts = parts


class Reference:
    """The frozen initial policy. With an adapter, the policy's own weights with the adapter off or as it started."""

    def __init__(self, policy: Policy, frozen: Policy | None = None) -> None:
        self._policy = policy
        self._frozen = frozen

    @property
    def shares_weights(self) -> bool:
        return self._frozen is None

    @property
    def frozen(self) -> Policy | None:
        """The model of its own, where it has one."""
        return self._frozen

    @contextlib.contextmanager
    def active(self) -> Iterator[Policy]:
        """The policy object whose forward is now the reference's."""
        if self._frozen is not None:
            yield self._frozen
        else:
            assert self._policy.adapters is not None
            with self._policy.adapters.use(REFERENCE_ADAPTER if self._policy.trained_adapter else None):
                yield self._policy

    @torch.no_grad()
    def logprobs(self, *batch: Tensor, temperature: float) -> Tensor:
        """log π_ref(a|s) of the response tokens, (B, T) float32."""
        with self.active() as model:
            return model.logprobs(*batch, temperature=temperature)[0]


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
    model = _load_causal_lm(key, source, config, model_dtype(config, runtime))
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


def load_reference(
    config: ReferenceConfig,
    policy_config: PolicyConfig,
    policy: Policy,
    runtime: Runtime,
    *,
    trained: str = "the policy",
) -> Reference:
    """The reference: the policy's weights where an adapter makes that possible, otherwise a frozen model of its own."""
    if config.path is None and policy_config.adapter.enabled:
        return Reference(policy)
    key, path = "policy.path", policy_config.path
    if config.path is not None:
        key, path = "reference.path", config.path
        policy_config = replace(policy_config, revision=config.revision)  # policy.revision is of policy.path
    dtype = model_dtype(policy_config, runtime)
    model: Any = freeze(_load_causal_lm(key, path, policy_config, dtype).to(runtime.device))
    if model.get_output_embeddings().weight.shape[0] != _base(policy.model).get_output_embeddings().weight.shape[0]:
        raise UserError(key, f"{path} has another vocabulary than {trained}", "the two must share a tokenizer")
    return Reference(policy, Policy(model, policy.tokenizer, runtime))


def model_inputs(
    prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
) -> dict[str, Any]:
    """Ids, attention mask and explicit position ids of [left-padded prompt | right-padded response], (B, L) each."""
    attention_mask = torch.cat([prompt_mask, response_mask], dim=1).long()
    return {
        "input_ids": torch.cat([prompt_ids, response_ids], dim=1),
        "attention_mask": attention_mask,
        "position_ids": position_ids(attention_mask),
    }


def _enable_checkpointing(policy: Policy) -> None:
    if not getattr(_base(policy.model), "supports_gradient_checkpointing", False):
        raise UserError("policy.gradient_checkpointing", "this model does not support it", "set it to false")
    options: dict[str, Any] = {"use_reentrant": False}
    if policy.adapters is not None:
        options["context_fn"] = policy.adapters.checkpoint_contexts
        policy.model.enable_input_require_grads()
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def trial_batch(model: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two short rows, the second one padded, to see what the model does with hidden states."""
    device = next(model.parameters()).device
    words = min(_base(model).get_input_embeddings().weight.shape[0], _base(model).config.get_text_config().vocab_size)
    ids = torch.arange(1, 17, device=device).view(2, 8) % words
    mask = torch.ones(2, 8, dtype=torch.bool, device=device)
    mask[1, :2] = False
    return ids[:, :5], mask[:, :5], ids[:, 5:], mask[:, 5:]


def _load_causal_lm(key: str, path: str, config: PolicyConfig, dtype: torch.dtype) -> Any:
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


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _pad_token_id(tokenizer: Any, eos_token_ids: list[int], vocabulary: int) -> int:
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < vocabulary:
        return int(tokenizer.pad_token_id)
    return eos_token_ids[0] if eos_token_ids else 0


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
    _base(policy.model).generation_config = neutral
