"""The policy: the tokens that end its responses, and its log-probs."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from apa_cli.algorithms import response_logits, response_logprobs
from apa_cli.models.adapters import AdapterSwitch
from apa_cli.models.device import Runtime
from apa_cli.models.head import OutputHead, take_apart
from apa_cli.models.layout import Batch, layout_of
from apa_cli.models.limits import room_of
from apa_cli.models.token_ids import end_of_turn, end_tokens, filling_id, known_ids

logger = logging.getLogger(__name__)


class Policy:
    """A causal language model with its tokenizer and perhaps an adapter.

    ends: the ids that end a response, each with its origin; `eos_token_ids` lists them.
    pad_token_id: may equal an EOS, as masks are positional.
    parts: the model's trunk and head, if a trial at loading shows that they explain its logits; None if not `apart`.
    room: the most prompt and response tokens, if known. known_ids: rows of the embedding.

    Forward passes take a `Batch`. Without `parts` they ignore its `rows` and keep the plain layout.
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
        self.known_ids = known_ids(model)
        self.pad_token_id = filling_id(tokenizer, self.known_ids, self.eos_token_ids)
        signature = inspect.signature(base_of(model).forward).parameters
        self._accepts = {name: name in signature for name in ("position_ids", "logits_to_keep")}
        room = room_of(base_of(model), positions=self._accepts["position_ids"])
        self.room = room.tokens if room is not None else None
        self.adapters = AdapterSwitch(model) if self.is_peft else None
        self._trained = [p for p in model.parameters() if p.requires_grad]
        try:
            trial = self._accepted(layout_of(trial_batch(model), model).inputs)
            self.parts = take_apart(model, base_of(model), trial, runtime) if apart else None
        except (ValueError, RuntimeError, TypeError, AttributeError):
            self.parts = None  # it does not run on token ids alone: check_agreement reports it
        self.compiled: Callable[..., Any] | None = None  # the trunk, for the update
        if apart and self.parts is None:
            logger.info("%s is called whole: its logits are not its head's alone", type(base_of(model)).__name__)

    @property
    def is_peft(self) -> bool:
        return hasattr(self.model, "peft_config")

    def closing_token(self, *, chat: bool) -> int | None:
        """The token that ends a complete response: a chat template's end of turn, else EOS; None if nothing does."""
        for token in (end_of_turn(self.tokenizer) if chat else None, self.tokenizer.eos_token_id):
            if token in self.ends:
                return int(token)
        return min(self.ends, default=None)

    def describe_ends(self) -> str:
        """What ends a response, for the log."""
        names = self.tokenizer.convert_ids_to_tokens(self.eos_token_ids)
        return ", ".join(f"{name} ({origin})" for name, origin in zip(names, self.ends.values(), strict=True))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The policy's trained parameters, without those of a critic's adapter on the same model."""
        return self._trained

    def logprobs(self, batch: Batch, *, temperature: float) -> tuple[Tensor, Tensor]:
        """log π(a|s) of the response tokens, (B, T) float32, and the head's input, (B, T, H).

        Masked tokens get 0. If the model has `parts`, their logits are never computed.
        """
        _, _, response_ids, response_mask, _ = batch
        if self.parts is None:
            logits, hidden = self.response_forward(batch)
            logprobs = response_logprobs(logits, response_ids, temperature=temperature)
            return torch.where(response_mask, logprobs, 0.0), hidden
        hidden = self.hidden_states(batch)  # (B, T, H)
        counted = response_mask.flatten().nonzero().squeeze(-1)  # (N,)
        logprobs = self.parts.head.logprobs(
            hidden.flatten(0, 1).index_select(0, counted),
            response_ids.flatten()[counted],
            temperature=temperature,
            contexts=self.adapters and self.adapters.checkpoint_contexts,
        )
        whole = torch.zeros(response_mask.numel(), dtype=logprobs.dtype, device=logprobs.device)
        return whole.index_put((counted,), logprobs).view_as(response_mask), hidden

    def hidden_states(self, batch: Batch) -> Tensor:
        """The head's input at the positions that predict the response tokens, (B, T, H)."""
        if self.parts is None:
            return self.response_forward(batch)[1]
        layout = layout_of(batch, self.model)
        with self.runtime.autocast():
            return layout.predicting(self.parts.hidden(self._accepted(layout.inputs)))

    @torch.no_grad()
    def counted_logits(self, batch: Batch) -> Callable[[slice], Tensor]:
        """A function from a slice of the counted tokens, in the mask's order, to their logits (n, V)."""
        response_mask = batch.response_mask
        if self.parts is None:
            logits = self.response_forward(batch)[0][response_mask]  # (N, V)
            return lambda tokens: logits[tokens]
        head: OutputHead = self.parts.head
        hidden = self.hidden_states(batch)[response_mask]  # (N, H)
        return lambda tokens: head.logits(hidden[tokens])

    def response_forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One call of the whole model: logits (B, T, V) of the response tokens, and the head's input (B, T, H)."""
        plain = batch._replace(rows=None)
        T = plain.response_ids.shape[1]
        inputs: dict[str, Any] = self._accepted(layout_of(plain, self.model).inputs)  # (B, L)
        if self._accepts["logits_to_keep"]:
            inputs["logits_to_keep"] = T + 1
        captured: list[Tensor] = []
        head = base_of(self.model).get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
        try:
            with self.runtime.autocast():
                logits = self.model(**inputs, use_cache=False).logits  # (B, T + 1 or L, V)
        finally:
            handle.remove()
        return response_logits(logits, T), response_logits(captured[0], T)

    def _accepted(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs if self._accepts["position_ids"] else {n: t for n, t in inputs.items() if n != "position_ids"}

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Training mode without unrequested dropout, with the compiled trunk if there is one."""
        parts = self.parts
        if parts is not None and self.compiled is not None:
            self.parts = replace(parts, trunk=self.compiled)
        train_without_noise(self.model)
        try:
            yield
        finally:
            self.model.eval()
            self.parts = parts


def train_without_noise(model: nn.Module) -> None:
    """Training mode for checkpointed layers and for adapters with dropout.

    Everything else stays in evaluation mode, without dropout, layer drop or router noise.
    """
    model.eval()
    settings = [vars(own) for own in getattr(model, "peft_config", {}).values()]
    dropout = any(value for own in settings for name, value in own.items() if name.endswith("dropout"))
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
        elif dropout and hasattr(module, "base_layer"):
            module.training = True
            for name, part in module.named_children():
                if name != "base_layer":
                    part.train()


def trial_batch(model: Any) -> Batch:
    """Two short rows, the second one padded, to try the model on."""
    device = next(model.parameters()).device
    words = min(known_ids(base_of(model)), base_of(model).config.get_text_config().vocab_size)
    ids = torch.arange(1, 17, device=device).view(2, 8) % words
    mask = torch.ones(2, 8, dtype=torch.bool, device=device)
    mask[1, :2] = False
    return Batch(ids[:, :5], mask[:, :5], ids[:, 5:], mask[:, 5:])


def base_of(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
