"""Training state on disk: numbers as JSON, tensors as safetensors, nothing pickled."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apa_cli.training.state import TrainingState

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"


def save_training_state(state: TrainingState, folder: Path) -> None:
    """Iteration, schedule, data position, moments, adaptive β, optimizer and every random state."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {**state.scalars(), "random": _random_numbers()}
    (folder / STATE_FILE).write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    save_file(_optimizer_tensors(state.optimizer), folder / OPTIMIZER_FILE)
    save_file(_random_tensors(), folder / RANDOM_FILE)


def load_training_state(state: TrainingState, folder: Path) -> None:
    """The inverse, into a freshly built state whose parameters hold the checkpoint's weights."""
    saved = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    state.load_scalars(saved)
    _load_optimizer(state.optimizer, load_file(folder / OPTIMIZER_FILE))
    _load_random(saved["random"], load_file(folder / RANDOM_FILE))


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{parameter index}.{exp_avg | exp_avg_sq | step}` in the order of the parameter groups."""
    entries = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, entry in entries.items()
        for name, value in entry.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_numbers() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=True)
    name, _, position, has_gauss, cached = state
    version, words, gauss = random.getstate()
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {"name": name, "position": position, "has_gauss": has_gauss, "cached": cached},
    }


def _random_tensors() -> dict[str, Tensor]:
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    state: Any = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(state[1].astype(np.int64))
    return tensors


def _load_random(numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    python, numpy = numbers["python"], numbers["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    words = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], words, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
