"""How a batch of prompts and responses lies in the rows of a forward pass.

plain     a row for each response:  [left-padded prompt | right-padded response]
packed    a row for several responses to one prompt:  [prompt | response | response | … | padding]

A packed response attends to its prompt and to itself, and its positions continue the prompt's. It is thus computed as
in a row of its own, and the prompt only once (Prefix Grouper, arXiv:2506.05433). A trial after loading decides whether
a model gives the same numbers in this layout (rollouts/agreement.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apa_cli.algorithms import position_ids, response_logits

ATTENTION_COST = 6  # c / width: 24 width² operations for a token's products, over 4 width for each token that it reads
WINDOWS = ("window", "window_size", "chunk_size")  # ends of the names of configuration fields


class Batch(NamedTuple):
    """The inputs of a forward pass over B responses."""

    prompt_ids: Tensor  # (B, P) left-padded
    prompt_mask: Tensor  # (B, P) bool
    response_ids: Tensor  # (B, T) right-padded
    response_mask: Tensor  # (B, T) bool
    rows: Tensor | None = None  # (B,) responses with the same number share a row; None: the plain layout


@dataclass(frozen=True, kw_only=True)
class Layout:
    inputs: dict[str, Tensor]  # input_ids and position_ids (n, L), attention_mask (n, L) or (n, 1, L, L)
    width: int  # T
    places: Tensor | None = None  # (B, T) of the n · L positions, those that predict each response token

    def predicting(self, states: Tensor) -> Tensor:
        """What (n, L, H) holds at the positions that predict the response tokens: (B, T, H)."""
        if self.places is None:
            return response_logits(states, self.width)
        return states.flatten(0, 1).index_select(0, self.places.flatten()).unflatten(0, self.places.shape)


def layout_of(batch: Batch, model: Any) -> Layout:
    """The layout that `batch` asks for, as the transformers model `model` takes it."""
    if batch.rows is None:
        attention_mask = torch.cat([batch.prompt_mask, batch.response_mask], dim=1).long()
        inputs = {
            "input_ids": torch.cat([batch.prompt_ids, batch.response_ids], dim=1),
            "attention_mask": attention_mask,
            "position_ids": position_ids(attention_mask),
        }
        return Layout(inputs=inputs, width=batch.response_ids.shape[1])
    return _packed(batch, batch.rows, model)


def _packed(batch: Batch, numbers: Tensor, model: Any) -> Layout:
    """One row for each of the `numbers` (B,), the responses in their order behind the prompt of the first."""
    device, (B, T) = numbers.device, batch.response_ids.shape
    rows = numbers.unique(return_inverse=True)[1]  # (B,) 0 … n − 1
    prompts, responses = batch.prompt_mask.sum(dim=1), batch.response_mask.sum(dim=1)  # (B,)
    same_row = rows[:, None] == rows
    earlier = same_row & torch.ones(B, B, dtype=torch.bool, device=device).tril(-1)  # (B, B) [i, j]: j before i
    starts = prompts + torch.where(earlier, responses, 0).sum(dim=1)  # (B,) column of the first token
    n, L = int(rows.max()) + 1, int((starts + responses).max())

    columns = starts[:, None] + torch.arange(T, device=device)  # (B, T)
    own = (rows[:, None] * L + columns)[batch.response_mask]  # (N,) place of each response token
    first = ~earlier.any(dim=1)  # one response of each row brings the prompt
    back = torch.arange(batch.prompt_ids.shape[1], device=device) - batch.prompt_ids.shape[1]
    prompt_columns = prompts[:, None] + back  # (B, P)
    shared = batch.prompt_mask & first[:, None]
    common = (rows[:, None] * L + prompt_columns)[shared]

    def filled(prompt: Tensor, response: Tensor, padding: int) -> Tensor:
        whole = torch.full((n * L,), padding, dtype=torch.int64, device=device)
        whole[common], whole[own] = prompt[shared], response[batch.response_mask]
        return whole.view(n, L)

    count = torch.arange(T, device=device)
    ids = filled(batch.prompt_ids, batch.response_ids, 0)
    positions = filled(prompt_columns, prompts[:, None] + count, 0)
    reader = torch.arange(1, B + 1, device=device)[:, None]  # which response a token belongs to; 0: the prompt
    reader = filled(torch.zeros_like(prompt_columns), reader.expand(B, T), -1)
    before = torch.ones(L, L, dtype=torch.bool, device=device).tril()
    query, key = reader[:, :, None], reader[:, None, :]
    attended = before & ((query == key) | (key == 0)) & (query >= 0)  # (n, L, L)
    attended |= torch.eye(L, dtype=torch.bool, device=device)  # padding attends to itself, as nothing gives NaN
    mask = attended[:, None]
    if model.config._attn_implementation != "sdpa":  # eager attention adds the mask to its scores
        dtype = next(model.parameters()).dtype
        mask = torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
    predicting = torch.where(count == 0, prompts[:, None] - 1, columns - 1)
    places = rows[:, None] * L + torch.where(batch.response_mask, predicting, 0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return Layout(inputs=inputs, width=T, places=places)


def rows_of_groups(
    prompt_lengths: Tensor, response_lengths: Tensor, group_size: int, *, width: int, longest: int | None = None
) -> Tensor:
    """The row of the packed layout that each response is computed in: (B,) numbers, each group's its own.

    `group_size` responses side by side answer one prompt. A row of L tokens costs L + L² / c: each token also reads the
    others, at 1 / c of the cost of its matrix products, and c is about 6 × `width` in a transformer. The least cost a
    response is that of rows with √(P (P + c)) response tokens; a group is cut into as few rows as keep to that.
    `longest`: the most tokens of a row that holds several responses, None for any number.
    """
    numbers, number = [], -1
    for P, counts in zip(
        prompt_lengths[::group_size].tolist(), response_lengths.view(-1, group_size).tolist(), strict=True
    ):
        room = math.sqrt(P * (P + ATTENTION_COST * width))
        if longest is not None:
            room = min(room, longest - P)
        share = max(sum(counts) / math.ceil(sum(counts) / max(1.0, room)), *counts)  # rows of about equal length
        filled = math.inf
        for count in counts:
            if filled + count > share:
                number, filled = number + 1, 0
            filled += count
            numbers.append(number)
    return torch.tensor(numbers, device=response_lengths.device)


def longest_row(model: Any) -> int | None:
    """The most tokens of a row in which attention has no window of its own, as the mask of a packed row replaces it."""
    config = model.config.get_text_config().to_dict()
    windows = [size for name, size in config.items() if name.endswith(WINDOWS) and isinstance(size, int) and size > 0]
    return min(windows, default=None)
