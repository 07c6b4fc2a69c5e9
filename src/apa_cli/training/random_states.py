"""The random states of torch (CPU and CUDA), Python and NumPy."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RandomStates:
    numbers: dict[str, Any]  # JSON
    tensors: dict[str, Tensor]

    @classmethod
    def capture(cls) -> RandomStates:
        state: Any = np.random.get_state(legacy=True)
        name, words, position, has_gauss, cached = state
        version, python_words, gauss = random.getstate()
        tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(words.astype(np.int64))}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        return cls(
            numbers={
                "python": {"version": version, "words": list(python_words), "gauss": gauss},
                "numpy": {"name": name, "position": position, "has_gauss": has_gauss, "cached": cached},
            },
            tensors=tensors,
        )

    def restore(self) -> None:
        python, numpy = self.numbers["python"], self.numbers["numpy"]
        random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
        words = self.tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state((numpy["name"], words, numpy["position"], numpy["has_gauss"], numpy["cached"]))
        torch.set_rng_state(self.tensors["torch"])
        if "cuda" in self.tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.tensors["cuda"])
