"""Load tokenizers and models from a folder, the Hub or the built-in task, from safetensors only."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from apa_cli.assets.resolve import PREFIX, resolve_path
from apa_cli.data.hub import use_cache_if_unreachable
from apa_cli.errors import UserError
from apa_cli.models.weight_files import ADAPTER_CONFIG, refuse_pickles

OWN_NOISE = "own_noise"
NOISE = ("drop", "jitter")  # as they appear in names of configuration fields
MASKED = ("ForMaskedLM", "ForPreTraining")  # bidirectional architectures, unless is_decoder is set
_LAYER = re.compile(r"(.+?)\.(\d+)\.")  # the name of a list of layers, and a number in it
MOST_LAYERS = 1000  # several times the deepest transformer
LONGEST_REASON = 240  # characters of a library's error message
MERGE = "merge it into its base once: peft's AutoPeftModel….from_pretrained(…).merge_and_unload().save_pretrained(…)"


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


def load_pretrained(auto_class: Any, key: str, path: str, *, brought: Container[str] = (), **options: Any) -> Any:
    """`auto_class.from_pretrained`, with every failure as a UserError at `key`.

    Missing weights are an error, as transformers would fill them with random numbers. Only `brought` weights, which an
    adapter adds afterwards, may be missing or of another shape.
    """
    folder, options = _place(key, path, options)
    own_noise = vars(options["config"]).pop(OWN_NOISE, []) if "config" in options else []
    if commit := getattr(options.get("config"), "_commit_hash", None):
        options["revision"] = commit  # of the configuration: a branch may move
    try:
        with _quiet_transformers():  # its warnings are checked below
            model, info = auto_class.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:  # each model's code raises its own errors
        attention = options.get("attn_implementation")
        if attention is not None and "attention" in str(error).lower():
            problem = f"{attention} cannot be used here ({first_line(error)})"
            raise UserError("policy.attn_implementation", problem, "install what it needs, or leave it null") from error
        raise _as_user_error(key, path, error) from error
    info["mismatched_keys"] = [entry for entry in info["mismatched_keys"] if entry[0] not in brought]
    info["missing_keys"] = [name for name in info["missing_keys"] if name not in brought]
    _check_weights(key, path, model, info)
    setattr(model, OWN_NOISE, own_noise)
    return model


def _check_weights(key: str, path: str, model: Any, info: dict[str, Any]) -> None:
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        shapes = f"{name} is {'×'.join(map(str, found))} and should be {'×'.join(map(str, wanted))}"
        problem = f"{path} has weights that do not fit its config.json: {shapes}"
        raise UserError(key, problem, "give a folder saved in one piece")
    if missing := sorted(info["missing_keys"]):
        problem = f"{path} lacks weights of this model ({len(missing)} missing, first {missing[0]})"
        raise UserError(key, problem, "give a folder saved from the same kind of model")
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    layers = [
        {(found[1], int(found[2])) for found in (_LAYER.match(name.removeprefix(prefix)) for name in names) if found}
        for names in (info["unexpected_keys"], [name for name, _ in model.named_parameters()])
    ]
    lists = {name for name, _ in layers[1]}
    if spare := sorted(layer for layer in layers[0] - layers[1] if layer[0] in lists):
        first = "{}.{}".format(*spare[0])
        problem = f"{path} has weights of more layers than its config.json ({len(spare)} more, first {first})"
        raise UserError(key, problem, "give a folder saved in one piece, or correct num_hidden_layers")
    for name, weights in model.named_parameters():
        # minimum and maximum show NaN and infinity without a mask of the tensor's size
        if weights.is_floating_point() and not all(end.isfinite() for end in weights.detach().aminmax()):
            raise UserError(key, f"{path} holds numbers that are not finite, in {name}", "give another copy of it")


def load_tokenizer(key: str, path: str, **options: Any) -> Any:
    """The tokenizer saved beside a model."""
    from transformers import AutoTokenizer

    folder, options = _place(key, path, options, adapter=True)
    remedy = "save one beside the model with tokenizer.save_pretrained"
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
        load_config(key, path, **options)  # raises if the fault is the model's or the network's
        raise UserError(key, f"no tokenizer could be loaded from {path} ({first_line(error)})", remedy) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers invents one
        raise UserError(key, f"{path} holds no tokenizer", remedy)
    return tokenizer


def load_config(key: str, path: str, **options: Any) -> Any:
    """The model's configuration with every kind of dropout set to 0, so that log-probs are deterministic."""
    from transformers import AutoConfig

    folder, options = _place(key, path, options)
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(folder, **options)
    except Exception as error:  # each model's configuration raises its own errors
        raise _as_user_error(key, path, error) from error
    if "/" in str(getattr(config, "_attn_implementation", None) or ""):
        kernel = config._attn_implementation
        raise UserError(key, f"{path} asks for the attention kernel {kernel}, which is code", "do not use this model")
    _check_config(key, path, config)
    setattr(config, OWN_NOISE, _without_noise(config))  # load_pretrained moves it to the model
    if not Path(folder).is_dir():
        # load_pretrained takes the weights from the same commit; versions.json names it; never saved
        config._commit_hash = _cached_commit(folder, options.get("revision"))
    return config


def _check_config(key: str, path: str, config: Any) -> None:
    """Refuse impossible sizes early: building 100,000 layers takes minutes."""
    wrong = None
    if not isinstance(config.architectures, (list, tuple, type(None))):
        wrong = f"architectures={config.architectures!r} in its config.json, which is no list"
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        size = getattr(config.get_text_config(), name, None)
        if isinstance(size, int) and size < 1:
            wrong = wrong or f"{name}={size} in its config.json"
        elif name == "num_hidden_layers" and isinstance(size, int) and size > MOST_LAYERS:
            wrong = wrong or f"{name}={size:,} in its config.json, and {MOST_LAYERS:,} are the most"
    if wrong is not None:
        raise UserError(key, f"{path} says {wrong}", "save the model again, or copy it again")


def refuse_quantized(key: str, path: str, config: Any, remedy: str) -> None:
    """Raise UserError if config.json says that the weights, which are to be trained, are quantized."""
    if (found := getattr(config, "quantization_config", None)) is not None:
        method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", "?")
        raise UserError(key, f"{path} is quantized ({method}), and such weights cannot be trained and saved", remedy)


def load_causal_config(key: str, path: str, **options: Any) -> Any:
    """`load_config`. Raises UserError if the configuration is not that of a causal model."""
    config = load_config(key, path, **options)
    masked = any(name.endswith(MASKED) for name in config.architectures or ())
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(key, f"{path} is an encoder-decoder", "give a causal language model")
    if masked and not getattr(config, "is_decoder", False):
        problem = f"{path} is a masked language model, which reads what follows"
        raise UserError(key, problem, "give a causal language model")
    return config


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit of the config.json in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "config.json", revision=revision)
    commit = Path(file).parent.name if isinstance(file, str) else ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _place(key: str, path: str, options: dict[str, Any], *, adapter: bool = False) -> tuple[str, dict[str, Any]]:
    """The checked folder or Hub id of a model, and the options that are set.

    Code from a repository never runs by default: without a choice, transformers would ask. `adapter`: allow a folder
    of an adapter, which has no config.json beside its tokenizer.
    """
    folder = resolve_model_path(key, path)
    options = {"trust_remote_code": False, **{name: value for name, value in options.items() if value is not None}}
    if not Path(folder).is_dir():
        use_cache_if_unreachable()
        return folder, options
    options.pop("revision", None)
    if not (adapter and (Path(folder) / ADAPTER_CONFIG).is_file()):
        _check_folder(key, Path(folder))
    return folder, options


def _without_noise(config: Any, *within: str) -> list[tuple[tuple[str, ...], float]]:
    """Zero every dropout probability, in nested configurations (text_config, attn_config) too.

    Returns the original values with the path of names to each.
    """
    own = []
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            own += _without_noise(value, *within, name)
        elif isinstance(value, float) and any(part in name for part in NOISE):
            own.append(((*within, name), value))
            setattr(config, name, 0.0)
    return own


@contextlib.contextmanager
def own_noise(model: Any) -> Iterator[None]:
    """Restore the model's original dropout probabilities, for saving."""
    places = [(reduce(getattr, names[:-1], model.config), names[-1], p) for names, p in getattr(model, OWN_NOISE, ())]
    for config, name, value in places:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, _ in places:
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
    file = folder / "config.json"
    if (folder / ADAPTER_CONFIG).is_file() and not file.is_file():
        remedy = "set policy.adapter.path to it and the path to its base model" if key == "policy.path" else MERGE
        raise UserError(key, f"{folder} holds a PEFT adapter, not a model", remedy)
    if not file.is_file():
        raise UserError(key, f"{folder} has no config.json", "give a folder in Hugging Face format")
    refuse_pickles(key, folder)


def _as_user_error(key: str, path: str, error: Exception) -> UserError:
    text = str(error)
    if "trust_remote_code" in text:
        remedy = "give a model that transformers itself knows: code is run for policy.path alone"
        if key == "policy.path":
            remedy = "set policy.trust_remote_code=true if you trust its authors"
        return UserError(key, f"{path} carries its own Python code", remedy)
    if isinstance(error, PermissionError):
        return UserError(key, f"{error.filename or path} cannot be read: {error.strerror}", "check its permissions")
    if "safetensors" in text and "no file named" in text:
        remedy = "convert it once with model.save_pretrained(folder)"
        return UserError(key, f"{path} has no safetensors weights", remedy)
    on_disk = Path(path).expanduser().is_dir() or path.startswith(PREFIX)
    reason = first_line(error)
    if on_disk and isinstance(error, KeyError):
        reason = f"transformers finds no {error}, which its config.json names or lacks"
    elif isinstance(error, (TypeError, AttributeError)):
        reason = f"{type(error).__name__}: {reason}"
    remedy = "save the model again, copy it again, or update transformers"
    if not on_disk:
        remedy = "check the name, your network and, for gated models, `hf auth login`"
    return UserError(key, f"cannot load {path} ({reason})", remedy)


def first_line(error: Exception) -> str:
    """The first line of the message, and the next if it ends in a colon; the first sentence of a long line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, KeyError):
        line = f"no {line}"
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON].rpartition(". ")[0] or line[:LONGEST_REASON]
