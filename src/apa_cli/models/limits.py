"""How many tokens a model takes, found by a trial: its configuration may mislead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

TRIAL = 4  # tokens


@dataclass(frozen=True)
class Room:
    """How many tokens a model takes. Beyond a `firm` limit there are no positions, beyond any other it is untrained."""

    tokens: int
    firm: bool


def room_of(model: Any, *, positions: bool = False) -> Room | None:
    """The usable rows of the model's table of positions, else the length in its configuration, if any.

    RoBERTa and similar models begin at the row after the padding's, OPT and Nyströmformer at the third. Models with
    rotary, ALiBi or relative positions have no table. `positions`: pass position ids that start at 0, as policy and
    critic do.
    """
    config = model.config.get_text_config()
    device = next(model.parameters()).device
    pad = getattr(config, "pad_token_id", None)
    ids = torch.full((1, TRIAL), 1 if pad == 0 else 0, device=device)  # all equal: only positions count up
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if positions:
        inputs["position_ids"] = torch.arange(TRIAL, device=device)[None]
    with torch.no_grad(), _PositionTables(model) as tables:
        try:
            model.base_model(**inputs)
        except Exception:  # a model with other inputs
            tables.rows.clear()
    if tables.rows:
        return Room(min(tables.rows), firm=True)
    for name in ("max_position_embeddings", "max_seq_len"):  # MPT builds its biases for the latter
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return Room(length, firm=name == "max_seq_len")
    return None


class _PositionTables(TorchFunctionMode):
    """Records look-ups of consecutive rows in the model's own parameters and buffers: these are positions."""

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
