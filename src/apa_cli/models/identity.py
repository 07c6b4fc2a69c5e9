"""Whether two models mean the same: by a token id, and by the base that an adapter was trained on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from apa_cli.assets.resolve import resolve_path
from apa_cli.errors import UserError
from apa_cli.models.loading import load_tokenizer, resolve_model_path

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
COMPARED = 16  # tensors, and of each the first rows


def same_tokenizer(a: Any, b: Any) -> bool:
    """Whether two tokenizers turn every text into the same ids."""
    backends = [getattr(t, "backend_tokenizer", None) for t in (a, b)]
    if all(backend is not None for backend in backends):
        return _rules(backends[0]) == _rules(backends[1])
    return type(a) is type(b) and a.get_vocab() == b.get_vocab() and a.all_special_ids == b.all_special_ids


def _rules(backend: Any) -> dict[str, Any]:
    rules = json.loads(backend.to_str())
    return {name: part for name, part in rules.items() if name not in ("padding", "truncation")}


def check_same_ids(key: str, path: str, policy_tokenizer: Any, **options: Any) -> None:
    """Raise UserError where the tokenizer in `path` has another token behind an id than the policy's tokenizer.

    Either may know ids that the other does not, and call a special token by another name, as chat models call
    reserved ones. A folder without a tokenizer is taken to share the policy's, which is logged.
    """
    if not has_tokenizer(key, path):
        logger.info("%s=%s brings no tokenizer: it is taken to share the policy's", key, path)
        return
    check_ids_agree(key, path, load_tokenizer(key, path, **options), policy_tokenizer)


def check_ids_agree(key: str, path: str, tokenizer: Any, policy_tokenizer: Any) -> None:
    (theirs, marks), (ours, our_marks) = _tokens(tokenizer), _tokens(policy_tokenizer)
    shared = theirs.keys() & ours.keys()
    others = sorted(i for i in shared if theirs[i] != ours[i] and not (i in marks and i in our_marks))
    if others:
        first = others[0]
        raise UserError(
            key,
            f"the tokenizer in {path} is not the policy's: id {first} is {theirs[first]!r} there and {ours[first]!r} "
            f"here ({len(others)} ids differ)",
            "give a model with the policy's tokenizer",
        )


def _tokens(tokenizer: Any) -> tuple[dict[int, str], set[int]]:
    """Each id's token, and the ids of special and added tokens."""
    marks = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    return {number: token for token, number in tokenizer.get_vocab().items()}, marks


def has_tokenizer(key: str, path: str) -> bool:
    folder = resolve_model_path(key, path)
    if Path(folder).is_dir():
        return any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)
    from transformers.utils import cached_file

    return cached_file(folder, TOKENIZER_FILES[0], _raise_exceptions_for_missing_entries=False) is not None


def check_base(key: str, folder: str, named: str | None, path: str) -> None:
    """Raise UserError where the adapter in `folder` says that it was trained on another base than `path`.

    Where both bases are here their weights decide; where one is not, the last part of its name.
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
    """Where a model is on this machine: its folder, or the Hub's cache."""
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
    """By the first rows of a few tensors, in the lower precision of the two. None where there is nothing to compare."""
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
            # the plan builds models on "meta", where nothing can be compared
            with torch.device("cpu"), safe_open(held[name], "pt") as tensors:  # type: ignore[no-untyped-call]
                part = tensors.get_slice(name)
                rows.append((part.get_shape(), part[:8] if part.get_shape() else tensors.get_tensor(name)))
        (shape, x), (other, y) = rows
        narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
        if shape != other or not torch.equal(x.to(narrow), y.to(narrow)):
            return False
    return bool(names)
