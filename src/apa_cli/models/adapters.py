"""Select the adapter of a PEFT model for the forward pass.

PEFT's set_adapter and disable_adapter also decide what is trained, and drop the other adapters' gradients. Here only
the forward pass changes, so that policy, reference and critic share one base and each trains its own adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

POLICY_ADAPTER = "default"  # PEFT's name for the first
REFERENCE_ADAPTER = "reference"
VALUE_ADAPTER = "critic"  # "value" is part of the layer name query_key_value


def cast_adapters(model: Any, dtype: torch.dtype, *names: str) -> None:
    """Cast these adapters to `dtype`; PEFT keeps them in float32 on a base of lower precision."""
    for name, weight in model.named_parameters():
        if not set(names).isdisjoint(name.split(".")):
            weight.data = weight.data.to(dtype)


class AdapterSwitch:
    """The active adapter: the policy's, except inside `use`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._current: str | None = POLICY_ADAPTER
        self.refresh()

    def refresh(self) -> None:
        """Collect the adapted layers again after an adapter was added."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        self._layers: list[Any] = [module for module in self._model.modules() if isinstance(module, kinds)]

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Run forward passes with this adapter, or with none."""
        before = self._current
        self._set(name)
        try:
            yield
        finally:
            self._set(before)

    def checkpoint_contexts(
        self,
    ) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
        """For torch.utils.checkpoint: recomputation uses the adapter of its forward pass."""
        return contextlib.nullcontext(), self.use(self._current)

    def _set(self, name: str | None) -> None:
        if name == self._current:
            return
        for layer in self._layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        self._current = name
