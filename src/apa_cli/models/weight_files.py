"""Which files weights may come from: safetensors, and nothing that is unpickled or names code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from apa_cli.data.hub import use_cache_if_unreachable
from apa_cli.errors import UserError

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")  # what trainers leave beside a model
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
HEAD_FILE = "value_head.safetensors"  # of a critic, beside what it computes on
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def refuse_pickles(key: str, folder: Path) -> None:
    """Raise UserError where a model's folder has pickled weights only, or an index that leads to anything else."""
    pickled = [
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in PICKLED and not path.name.startswith(NO_WEIGHTS)
    ]
    if pickled and not list(folder.glob("*.safetensors")):
        raise UserError(
            key,
            f"{folder} holds pickled weights only ({pickled[0]}), which can run code when loaded",
            "convert it once with model.save_pretrained(folder), which writes safetensors",
        )
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            wrong = sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(key, f"{index} cannot be read ({error})", "download or save the model again") from error
        if wrong:
            raise UserError(
                key, f"{index} names {wrong[0]}, which is no safetensors file beside it", "do not use this model"
            )


def check_adapter(key: str, folder: Path, *, critic: bool = False) -> None:
    """Raise UserError unless the folder holds a PEFT adapter in safetensors whose configuration names no code.

    A critic's adapter, with its head beside it, is taken for a `critic` alone.
    """
    if (folder / HEAD_FILE).is_file() and not critic:
        raise UserError(key, f"{folder} is a critic ({HEAD_FILE} lies in it)", "give the policy's adapter")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(key, f"{folder} has no {ADAPTER_CONFIG}", "give a PEFT adapter's folder")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise UserError(
            key,
            f"{folder} has no {ADAPTER_WEIGHTS}"
            + (", only pickled weights, which can run code when loaded" if pickled else ""),
            "save the adapter with save_pretrained, which writes safetensors",
        )
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        named = config.get("megatron_core") if config.get("megatron_config") else None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(key, f"{folder / ADAPTER_CONFIG} cannot be read ({error})", "save the adapter again") from error
    if named:
        raise UserError(key, f"{folder / ADAPTER_CONFIG} has peft import {named}", "do not use this adapter")


def fetch_adapter(key: str, name: str, revision: str | None = None) -> Path:
    """The two files of an adapter on the Hub, and its tokenizer's, as a local folder; nothing else is downloaded."""
    from huggingface_hub import snapshot_download

    use_cache_if_unreachable()
    try:
        files = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER]
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as error:  # network, authentication, names: each has its own types
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(key, f"cannot load {name} ({text})", "check the name and your network") from error


def read_safetensors(key: str, file: Path, **options: Any) -> dict[str, Tensor]:
    """`safetensors.torch.load_file`, with a file that is none as UserError."""
    from safetensors.torch import load_file

    try:
        return load_file(file, **options)
    except (SafetensorError, OSError) as error:
        raise UserError(key, f"{file} is no safetensors file ({error})", "give another checkpoint") from error
