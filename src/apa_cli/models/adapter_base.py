"""Whether an adapter fits its base: the same model, with the weights as they were published."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from apa_cli.assets.resolve import resolve_path
from apa_cli.errors import UserError

logger = logging.getLogger(__name__)

CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")  # initialisations of LoRA in PEFT that change the base
COMPARED = 16  # tensors, and of each the first rows


def check_kind(key: str, folder: str, settings: Any) -> None:
    """Raise UserError for an adapter that does not change weights, or that was trained on a changed base."""
    if settings.is_prompt_learning or settings.is_adaption_prompt:
        raise UserError(key, "this adapter adds to the prompt, not to the weights", "give a LoRA adapter")
    start = str(getattr(settings, "init_lora_weights", ""))
    if start.startswith(CHANGES_BASE):
        raise _other_base(key, folder, f"init_lora_weights={start}")


@contextmanager
def base_unchanged(key: str, folder: str, model: Any) -> Iterator[None]:
    """Raise UserError if loading an adapter changes the base's weights, as PiSSA's initialisation does.

    The reference would no longer be the base. An adapter may replace embeddings.
    """
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    own = {id(layer.weight) for layer in layers}
    before = [] if model.device.type == "meta" else [(p, _sum(p)) for p in model.parameters() if id(p) not in own]
    yield
    if any(not torch.equal(_sum(p), total) for p, total in before):
        raise _other_base(key, folder, "its kind")


def _other_base(key: str, folder: str, start: str) -> UserError:
    return UserError(
        key,
        f"the adapter in {folder} does not fit its base as it was published: {start} changes the base's weights",
        "convert it with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)",
    )


def _sum(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().sum(dtype=torch.float64)


def check_base(key: str, folder: str, named: str | None, path: str) -> None:
    """Raise UserError if the adapter in `folder` was trained on another base than `path`.

    Compares weights if both bases are on this machine, otherwise the last part of their names.
    """
    if named is None or named == path:
        return
    theirs, ours = _folder(named), _folder(path)
    same = _same_weights(theirs, ours) if theirs is not None and ours is not None else None
    if same is None and Path(named).name == Path(resolve_path(path)).name:
        logger.warning("%s: the adapter names %s as its base, which cannot be compared with %s", key, named, path)
    elif not same:
        raise UserError(
            key,
            f"the adapter in {folder} was trained on {named}, not on {path}",
            f"set policy.path={named}; if {path} is a copy of it, put that into base_model_name_or_path of "
            "the adapter's adapter_config.json",
        )


def _folder(name: str) -> Path | None:
    """The model's folder on this machine, perhaps in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(resolve_path(name)).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        file = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def _same_weights(a: Path, b: Path) -> bool | None:
    """Compare the first rows of a few tensors in the lower precision. None if there is nothing to compare."""
    from safetensors import safe_open

    if a == b:
        return True
    files: list[dict[str, Path]] = []
    for folder in (a, b):
        files.append({})
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:  # type: ignore[no-untyped-call]
                files[-1] |= dict.fromkeys(tensors.keys(), file)
    if not all(files):
        return None
    names = sorted(files[0].keys() & files[1].keys())
    for name in names[:: max(1, len(names) // COMPARED)]:
        rows = []
        for held in files:
            # the memory plan sets "meta", which has no data
            with torch.device("cpu"), safe_open(held[name], "pt") as tensors:  # type: ignore[no-untyped-call]
                part = tensors.get_slice(name)
                rows.append((part.get_shape(), part[:8] if part.get_shape() else tensors.get_tensor(name)))
        (shape, x), (other, y) = rows
        narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
        if shape != other or not torch.equal(x.to(narrow), y.to(narrow)):
            return False
    return bool(names)
