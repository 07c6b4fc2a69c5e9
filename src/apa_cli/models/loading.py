"""Loading tokenizers and models from a local folder, the Hub or the built-in task; safetensors only."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Container, Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from apa_cli.assets.resolve import PREFIX, resolve_path
from apa_cli.data.hub import use_cache_if_unreachable
from apa_cli.errors import UserError
from apa_cli.models.limits import check_ids, known_ids
from apa_cli.models.weight_files import ADAPTER_CONFIG, refuse_pickles

OWN_NOISE = "own_noise"
NOISE = ("drop", "jitter")  # as they appear in names of configuration fields
MASKED = ("ForMaskedLM", "ForPreTraining")  # architectures that read both sides, unless is_decoder says otherwise
_LAYER = re.compile(r"(.+?)\.(\d+)\.")
MOST_LAYERS = 1000  # several times the deepest transformer's
LONGEST_REASON = 240  # characters of a library's own words
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
    """`auto_class.from_pretrained`, with every failure as one line that names `key`.

    Weights that the model needs and the folder lacks are an error: transformers would fill them with random numbers.
    Only those that an adapter brings afterwards may be missing, or of another shape.
    """
    folder = resolve_model_path(key, path)
    options = _known(options)
    own_noise = vars(options["config"]).pop(OWN_NOISE, []) if "config" in options else []
    if Path(folder).is_dir():
        options.pop("revision", None)
        _check_folder(key, Path(folder))
    elif commit := getattr(options.get("config"), "_commit_hash", None):
        options["revision"] = commit  # a branch may move between the two
    try:
        with _quiet_transformers():  # what it would warn of is checked below
            model, info = auto_class.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:  # each model's code has checks and errors of its own
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
        raise UserError(
            key, f"{path} has weights that do not fit its config.json: {shapes}", "give a folder saved in one piece"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            key,
            f"{path} lacks weights of this model ({len(missing)} missing, first {missing[0]})",
            "give a folder saved from the same kind of model",
        )
    spare = _spare_layers(model, info["unexpected_keys"])
    if spare:
        problem = f"{path} has weights of more layers than its config.json ({len(spare)} more, first {spare[0]})"
        raise UserError(key, problem, "give a folder saved in one piece, or correct num_hidden_layers")
    for name, weights in model.named_parameters():
        # both ends of a tensor tell of NaN and infinity, without a mask of its size
        if weights.is_floating_point() and not all(end.isfinite() for end in weights.detach().aminmax()):
            raise UserError(key, f"{path} holds numbers that are not finite, in {name}", "give another copy of it")


def _spare_layers(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Layers, by name, that the weights have and the model has not, in a list of which it has others."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def layers(names: Iterable[str]) -> set[tuple[str, int]]:
        found = (_LAYER.match(name.removeprefix(prefix)) for name in names)
        return {(match[1], int(match[2])) for match in found if match}

    ours = layers(name for name, _ in model.named_parameters())
    lists = {name for name, _ in ours}
    return [f"{name}.{number}" for name, number in sorted(layers(unexpected) - ours) if name in lists]


def load_tokenizer(key: str, path: str, **options: Any) -> Any:
    """The tokenizer saved beside a model."""
    from transformers import AutoTokenizer

    folder = resolve_model_path(key, path)
    if Path(folder).is_dir():
        options.pop("revision", None)
        if not (Path(folder) / ADAPTER_CONFIG).is_file():  # an adapter's own has no config.json beside it
            _check_folder(key, Path(folder))
    else:
        use_cache_if_unreachable()
    remedy = "save one beside the model with tokenizer.save_pretrained"
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, **_known(options))
    except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
        load_config(key, path, **options)  # says so where the fault is the model's, or the network's
        raise UserError(key, f"no tokenizer could be loaded from {path} ({first_line(error)})", remedy) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without a tokenizer
        raise UserError(key, f"{path} holds no tokenizer", remedy)
    return tokenizer


def check_vocabulary(key: str, path: str, model: Any, tokenizer: Any) -> None:
    """Raise UserError where the tokenizer knows ids that the model does not.

    Of added tokens, those are checked that every text gets; the others where texts are read, since few texts hold any.
    """
    known = known_ids(model)
    if tokenizer.vocab_size > known:
        problem = f"the tokenizer in {path} has {tokenizer.vocab_size} ids, and its model {known}"
        raise UserError(key, problem, "give a folder whose tokenizer is the model's own")
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    check_ids([[*tokenizer("a")["input_ids"], *eos]], known, tokenizer, key=key, whose=f"the model in {path}")


def load_config(key: str, path: str, **options: Any) -> Any:
    """The model's configuration, with every kind of dropout set to 0: log-probs must not depend on chance."""
    from transformers import AutoConfig

    folder = resolve_model_path(key, path)
    if Path(folder).is_dir():
        options.pop("revision", None)
        _check_folder(key, Path(folder))
    else:
        use_cache_if_unreachable()
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(folder, **_known(options))
    except Exception as error:  # each model's configuration has checks and errors of its own
        raise _as_user_error(key, path, error) from error
    if "/" in str(getattr(config, "_attn_implementation", None) or ""):
        kernel = config._attn_implementation
        raise UserError(key, f"{path} asks for the attention kernel {kernel}, which is code", "do not use this model")
    _check_config(key, path, config)
    setattr(config, OWN_NOISE, _without_noise(config))  # load_pretrained hands it on to the model
    if not Path(folder).is_dir():
        # for the weights, which load_pretrained takes from the same commit, and Models.commits; never saved
        config._commit_hash = _cached_commit(folder, options.get("revision"))
    return config


def _check_config(key: str, path: str, config: Any) -> None:
    """Sizes that no model has: building 100,000 layers takes minutes, before their weights are missed."""
    if not isinstance(config.architectures, (list, tuple, type(None))):
        problem = f"{path} says architectures={config.architectures!r} in its config.json, which is no list"
        raise UserError(key, problem, "save the model again, or copy it again")
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        size = getattr(config.get_text_config(), name, None)
        if isinstance(size, int) and size < 1:
            raise UserError(
                key, f"{path} says {name}={size} in its config.json", "save the model again, or copy it again"
            )
        if name == "num_hidden_layers" and isinstance(size, int) and size > MOST_LAYERS:
            problem = f"{path} says num_hidden_layers={size:,} in its config.json, and {MOST_LAYERS:,} are the most"
            raise UserError(key, problem, "save the model again, or copy it again")


def load_causal_config(key: str, path: str, **options: Any) -> Any:
    """`load_config` of a model that is to be causal. Raises UserError where its configuration says that it is not."""
    config = load_config(key, path, **options)
    problem = None
    if getattr(config, "is_encoder_decoder", False):
        problem = "an encoder-decoder"
    elif any(name.endswith(MASKED) for name in config.architectures or ()) and not getattr(config, "is_decoder", False):
        problem = "a masked language model, which reads what follows"
    if problem is not None:
        raise UserError(key, f"{path} is {problem}", "give a causal language model")
    return config


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit that the Hub's cache has just taken a model's config.json from."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "config.json", revision=revision)
    commit = Path(file).parent.name if isinstance(file, str) else ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Options that are set. Code from a repository runs only where the caller says so: left open, one is asked."""
    return {"trust_remote_code": False, **{name: value for name, value in options.items() if value is not None}}


def _without_noise(config: Any, *within: str) -> list[tuple[tuple[str, ...], float]]:
    """Zero every probability of noise in training mode, in nested configurations (text_config, attn_config) too.

    What there was, by name from the outside in.
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
    """Inside, to save it, the model's configuration has the dropouts that it came with."""
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
    if not (folder / "config.json").is_file():
        adapter = (folder / ADAPTER_CONFIG).is_file()
        raise UserError(
            key,
            f"{folder} holds a PEFT adapter, not a model" if adapter else f"{folder} has no config.json",
            ("set policy.adapter.path to it and the path to its base model" if key == "policy.path" else MERGE)
            if adapter
            else "give a folder in Hugging Face format",
        )
    try:
        whole = isinstance(json.loads((folder / "config.json").read_text(encoding="utf-8")), dict)
    except OSError as error:
        problem = f"{folder / 'config.json'} cannot be read: {error.strerror or error}"
        raise UserError(key, problem, "check its permissions") from error
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise UserError(key, f"{folder / 'config.json'} is not a JSON object", "save the model again, or copy it again")
    refuse_pickles(key, folder)


def _as_user_error(key: str, path: str, error: Exception) -> UserError:
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            key,
            f"{path} carries its own Python code",
            "set policy.trust_remote_code=true if you trust its authors"
            if key == "policy.path"
            else "give a model that transformers itself knows: code is run for policy.path alone",
        )
    if isinstance(error, PermissionError):
        return UserError(key, f"{error.filename or path} cannot be read: {error.strerror}", "check its permissions")
    if "safetensors" in text and "no file named" in text:
        return UserError(
            key, f"{path} has no safetensors weights", "convert it once with model.save_pretrained(folder)"
        )
    on_disk = Path(path).expanduser().is_dir() or path.startswith(PREFIX)
    reason = first_line(error)
    if on_disk and isinstance(error, KeyError) and (name := _name_of(resolve_path(path), error.args[:1])):
        reason = f"transformers knows no {name}={error.args[0]!r}, which its config.json asks for"
    elif isinstance(error, (TypeError, AttributeError)):
        reason = f"{type(error).__name__}: {reason}"
    return UserError(
        key,
        f"cannot load {path} ({reason})",
        "save the model again, copy it again, or update transformers"
        if on_disk
        else "check the name, your network and, for gated models, `hf auth login`",
    )


def _name_of(folder: str, value: tuple[Any, ...]) -> str | None:
    """Under which name the config.json has this value, nested ones included."""

    def search(node: Any) -> str | None:
        for name, child in node.items() if isinstance(node, dict) else ():
            if (child,) == value:
                return str(name)
            if found := search(child):
                return found
        return None

    try:
        return search(json.loads((Path(folder).expanduser() / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def first_line(error: Exception) -> str:
    """Its first line, with the next where that one only announces it; of a long one the first sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, KeyError):
        line = f"no {line}"
    if len(line) > LONGEST_REASON:
        line = line[:LONGEST_REASON].rpartition(". ")[0] or line[:LONGEST_REASON]
    return line
