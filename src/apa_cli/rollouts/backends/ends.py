"""Where each response ends, recorded by position, so that padding cannot be confused with a real EOS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StopStringCriteria

from apa_cli.config import schema
from apa_cli.errors import UserError


class Ends:
    """The end of each of B responses, at an EOS or a stop string."""

    def __init__(
        self,
        rows: int,
        eos_token_ids: list[int],
        tokenizer: Any,
        config: schema.GenerationConfig,
        device: torch.device,
    ) -> None:
        self.min_new_tokens = config.min_new_tokens
        self.eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.long, device=device)
        self.stop = _stop_criteria(tokenizer, config.stop) if config.stop else None
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # (B,), 0 = not ended

    @property
    def ended(self) -> Tensor:
        return self.lengths > 0

    @property
    def can_end(self) -> bool:
        return len(self.eos_token_ids) > 0 or self.stop is not None

    def update(self, response_ids: Tensor) -> None:
        """`response_ids` (B, t): the responses so far."""
        if not self.can_end:
            return
        done = torch.isin(response_ids[:, -1], self.eos_token_ids)
        if self.stop is not None and response_ids.shape[1] >= self.min_new_tokens:
            # only the response is searched, as a prompt may end in a stop string
            done = done | self.stop(response_ids, None)  # type: ignore[arg-type]
        self.lengths = torch.where((self.lengths == 0) & done, response_ids.shape[1], self.lengths)


class StopInText:
    """Whether the newest token completed a stop string, by decoding at each step; for any tokenizer."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop

    def __call__(self, ids: Tensor, _scores: None) -> Tensor:
        """(B,) bool."""
        now, before = (self.tokenizer.batch_decode(part, skip_special_tokens=True) for part in (ids, ids[:, :-1]))
        completed = [any(n.count(s) > b.count(s) for s in self.stop) for n, b in zip(now, before, strict=True)]
        return torch.tensor(completed, device=ids.device)


def _stop_criteria(tokenizer: Any, stop: list[str]) -> StopStringCriteria | StopInText:
    """Raises UserError for a string that the tokenizer cannot write."""
    try:
        return StopStringCriteria(tokenizer, stop)
    except ValueError:  # a vocabulary it cannot handle, or strings in none of its tokens
        written = set(tokenizer.decode(list(range(len(tokenizer))), skip_special_tokens=True))
    for string in stop:
        if missing := [character for character in string if character not in written]:
            problem = f"{string!r} ends no response: the policy's tokenizer has no {missing[0]!r}"
            raise UserError("generation.stop", problem, "take it out, or name a token: generation.stop_tokens")
    return StopInText(tokenizer, stop)
