"""Which adapter of a PEFT model takes part in its forward.

PEFT's own set_adapter and disable_adapter decide at the same time what is trained, and forget every other adapter's
gradients. Here only the forward changes, so that policy, reference and critic can share one base and each keep what it
trains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

POLICY_ADAPTER = "default"  # PEFT's name for the first
REFERENCE_ADAPTER = "reference"
VALUE_ADAPTER = "critic"  # no part of a layer's name, as "value" is of query_key_value


def cast_adapters(model: Any, dtype: torch.dtype, *names: str) -> None:
    """PEFT keeps adapters in float32 on a base of lower precision; these are to be in `dtype`."""
    for name, weight in model.named_parameters():
        if not set(names).isdisjoint(name.split(".")):
            weight.data = weight.data.to(dtype)


class AdapterSwitch:
    """The adapter in use; the policy's, unless a `use` is under way."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._current: str | None = POLICY_ADAPTER
        self.refresh()

    def refresh(self) -> None:
        """Find the adapted layers again, after an adapter has been added."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        self._layers: list[Any] = [module for module in self._model.modules() if isinstance(module, kinds)]

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Forward with the adapter of this name, or with None."""
        before = self._current
        self._set(name)
        try:
            yield
        finally:
            self._set(before)

    def checkpoint_contexts(
        self,
    ) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
        """For torch.utils.checkpoint: what is recomputed in backward uses the adapter that its forward used."""
        return contextlib.nullcontext(), self.use(self._current)

    def _set(self, name: str | None) -> None:
        if name == self._current:
            return
        for layer in self._layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        self._current = name
