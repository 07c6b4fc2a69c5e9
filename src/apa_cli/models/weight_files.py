"""The files that weights may come from: safetensors only, nothing pickled and nothing that names code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from apa_cli.data.hub import use_cache_if_unreachable
from apa_cli.errors import UserError

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")  # left beside a model by trainers
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
HEAD_FILE = "value_head.safetensors"  # of a critic, beside its trunk or adapter
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def refuse_pickles(key: str, folder: Path) -> None:
    """Raise UserError if a model's folder has only pickled weights, or an index of other files."""
    pickled = [
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in PICKLED and not path.name.startswith(NO_WEIGHTS)
    ]
    if pickled and not list(folder.glob("*.safetensors")):
        problem = f"{folder} holds pickled weights only ({pickled[0]}), which can run code when loaded"
        raise UserError(key, problem, "convert it once with model.save_pretrained(folder), which writes safetensors")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            wrong = sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(key, f"{index} cannot be read ({error})", "download or save the model again") from error
        if wrong:
            problem = f"{index} names {wrong[0]}, which is no safetensors file beside it"
            raise UserError(key, problem, "do not use this model")


def check_adapter(key: str, folder: Path, *, critic: bool = False) -> None:
    """Raise UserError unless the folder holds a PEFT adapter in safetensors whose configuration names no code.

    Only a `critic` may load a critic's adapter, which has a head beside it.
    """
    if (folder / HEAD_FILE).is_file() and not critic:
        raise UserError(key, f"{folder} is a critic ({HEAD_FILE} lies in it)", "give the policy's adapter")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(key, f"{folder} has no {ADAPTER_CONFIG}", "give a PEFT adapter's folder")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        problem = f"{folder} has no {ADAPTER_WEIGHTS}"
        if (folder / "adapter_model.bin").is_file():
            problem += ", only pickled weights, which can run code when loaded"
        raise UserError(key, problem, "save the adapter with save_pretrained, which writes safetensors")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        named = config.get("megatron_core") if config.get("megatron_config") else None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(key, f"{folder / ADAPTER_CONFIG} cannot be read ({error})", "save the adapter again") from error
    if named:
        raise UserError(key, f"{folder / ADAPTER_CONFIG} has peft import {named}", "do not use this adapter")


def fetch_adapter(key: str, name: str, revision: str | None = None) -> Path:
    """Download only an adapter's two files and its tokenizer from the Hub, and return the folder."""
    from huggingface_hub import snapshot_download

    use_cache_if_unreachable()
    try:
        files = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER]
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as error:  # network, authentication, names: each has its own types
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(key, f"cannot load {name} ({text})", "check the name and your network") from error


def read_safetensors(key: str, file: Path, **options: Any) -> dict[str, Tensor]:
    """`safetensors.torch.load_file`. Raises UserError for any other file."""
    from safetensors.torch import load_file

    try:
        return load_file(file, **options)
    except (SafetensorError, OSError) as error:
        raise UserError(key, f"{file} is no safetensors file ({error})", "give another checkpoint") from error
