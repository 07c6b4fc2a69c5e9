"""What a model can be fed: how many tokens, and which ids. Found on the model itself: a configuration may mislead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

from apa_cli.errors import UserError

TRIAL = 4  # tokens


@dataclass(frozen=True)
class Room:
    """How many tokens a model takes. Beyond a `firm` number there are no positions, beyond another it is untrained."""

    tokens: int
    firm: bool


def room_of(model: Any, *, positions: bool = False) -> Room | None:
    """The rows of the model's table of positions, less those before a text's first token; else what it is set to.

    RoBERTa and its kind begin at the row behind the padding's, OPT and Nyströmformer at the third. A model without a
    table (rotary, ALiBi, relative positions) has the length in its configuration, if any. `positions`: the model is
    told positions from 0 on, as policy and critic are.
    """
    config = model.config.get_text_config()
    device = next(model.parameters()).device
    pad = getattr(config, "pad_token_id", None)
    ids = torch.full((1, TRIAL), 1 if pad == 0 else 0, device=device)  # alike: nothing but positions counts up
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if positions:
        inputs["position_ids"] = torch.arange(TRIAL, device=device)[None]
    with torch.no_grad(), _PositionTables(model) as tables:
        try:
            model.base_model(**inputs)
        except Exception:  # a model that wants other inputs: its configuration is all there is
            tables.rows.clear()
    if tables.rows:
        return Room(min(tables.rows), firm=True)
    for name in ("max_position_embeddings", "max_seq_len"):  # MPT builds its biases for the latter
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return Room(length, firm=name == "max_seq_len")
    return None


def known_ids(model: Any) -> int:
    """Rows of the embedding: ids from 0 to one less can be fed."""
    return int(model.get_input_embeddings().weight.shape[0])


def filling_id(tokenizer: Any, known: int, ends: Iterable[int] = ()) -> int:
    """An id that the model knows, to fill rectangles with: the pad token if it can be, else an EOS, else 0."""
    for token in (tokenizer.pad_token_id, *ends, tokenizer.eos_token_id):
        if token is not None and token < known:
            return int(token)
    return 0


def check_ids(rows: Iterable[Iterable[int]], known: int, tokenizer: Any, *, key: str, whose: str) -> None:
    """Raise UserError for an id that the model's embedding lacks, before it fails as an index out of range."""
    largest = max((max(row, default=0) for row in rows), default=0)
    if largest >= known:
        token = tokenizer.convert_ids_to_tokens(largest)
        problem = f"the tokenizer writes {token} as id {largest}, and {whose} knows ids below {known}"
        raise UserError(key, problem, "use the model's own tokenizer, or resize its embeddings for the added tokens")


class _PositionTables(TorchFunctionMode):
    """Watches the model look up rows of its own parameters and buffers; those in order are positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.rows: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is embedding:
            self._look(args[1], args[0])
        elif func is Tensor.__getitem__:
            self._look(*args)
        return func(*args, **(kwargs or {}))

    def _look(self, table: Any, index: Any) -> None:
        if id(table) not in self._own or not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
            return
        first = index.flatten()[:TRIAL].tolist()
        if first == list(range(first[0], first[0] + TRIAL)):
            self.rows.append(table.shape[0] - first[0])
