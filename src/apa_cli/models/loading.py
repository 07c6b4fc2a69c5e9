"""Loading tokenizers and models from a local folder, the Hub or the built-in task; safetensors only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from apa_cli.assets.resolve import resolve_path
from apa_cli.errors import UserError

NOISE = ("dropout", "pdrop", "layerdrop", "jitter_noise")  # as they appear in names of configuration fields
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def resolve_model_path(key: str, path: str) -> str:
    """The folder or Hub id behind `path`. Raises UserError for a local path that cannot hold a model."""
    resolved = resolve_path(path)
    folder = Path(resolved).expanduser()
    if folder.is_file():
        raise UserError(key, f"{path} is a file", "give the folder that holds config.json")
    if folder.is_dir():
        return str(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local:
        raise UserError(key, f"no folder {path}", "give a folder that holds config.json, or a Hub id")
    return resolved


def load_pretrained(auto_class: Any, key: str, path: str, **options: Any) -> Any:
    """`auto_class.from_pretrained`, with every failure as one line that names `key`.

    Weights that the model needs and the folder lacks are an error: transformers would fill them with random numbers.
    """
    folder = resolve_model_path(key, path)
    options = {name: value for name, value in options.items() if value is not None}
    if Path(folder).is_dir():
        options.pop("revision", None)
        _check_folder(key, Path(folder))
    try:
        with _quiet_transformers():  # what it would warn of is checked below
            model, info = auto_class.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise _as_user_error(key, path, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            key,
            f"{path} lacks weights of this model ({len(missing)} missing, first {missing[0]})",
            "give a folder saved from the same kind of model",
        )
    return model


def load_tokenizer(key: str, path: str, **options: Any) -> Any:
    """The tokenizer saved beside a model."""
    from transformers import AutoTokenizer

    folder = resolve_model_path(key, path)
    if Path(folder).is_dir():
        options.pop("revision", None)
        _check_folder(key, Path(folder))
    remedy = "save one beside the model with tokenizer.save_pretrained"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **{k: v for k, v in options.items() if v is not None})
    except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
        if "trust_remote_code" in str(error):
            raise _as_user_error(key, path, error) from error
        raise UserError(key, f"no tokenizer could be loaded from {path} ({_first_line(error)})", remedy) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without a tokenizer
        raise UserError(key, f"{path} holds no tokenizer", remedy)
    return tokenizer


def load_config(key: str, path: str, **options: Any) -> Any:
    """The model's configuration, with every kind of dropout set to 0: log-probs must not depend on chance."""
    from transformers import AutoConfig

    folder = resolve_model_path(key, path)
    if Path(folder).is_dir():
        options.pop("revision", None)
        _check_folder(key, Path(folder))
    try:
        config = AutoConfig.from_pretrained(folder, **{k: v for k, v in options.items() if v is not None})
    except (OSError, ValueError, ImportError) as error:
        raise _as_user_error(key, path, error) from error
    _without_noise(config)
    return config


def _without_noise(config: Any) -> None:
    """Zero every probability of noise in training mode, in nested configurations (text_config, attn_config) too."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            _without_noise(value)
        elif isinstance(value, float) and any(part in name for part in NOISE):
            setattr(config, name, 0.0)


def freeze(model: torch.nn.Module) -> torch.nn.Module:
    """No gradients, evaluation mode."""
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _check_folder(key: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise UserError(
            key,
            f"{folder} holds a PEFT adapter, not a model" if adapter else f"{folder} has no config.json",
            "set policy.adapter.path to it and the path to its base model"
            if adapter
            else "give a folder in Hugging Face format",
        )
    if any((folder / name).is_file() for name in PICKLED) and not list(folder.glob("*.safetensors")):
        raise UserError(
            key,
            f"{folder} holds pickled weights only, which can run code when loaded",
            "convert it once with model.save_pretrained(folder), which writes safetensors",
        )


def _as_user_error(key: str, path: str, error: Exception) -> UserError:
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            key, f"{path} carries its own Python code", "set policy.trust_remote_code=true if you trust its authors"
        )
    if "safetensors" in text:
        return UserError(
            key, f"{path} has no safetensors weights", "convert it once with model.save_pretrained(folder)"
        )
    return UserError(
        key,
        f"cannot load {path} ({_first_line(error)})",
        "check the name, your network and, for gated models, `hf auth login`",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
