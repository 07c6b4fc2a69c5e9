"""Load a sequence classifier and its tokenizer, from a model or a PEFT adapter on its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from apa_cli.errors import UserError
from apa_cli.models.adapter_base import check_kind
from apa_cli.models.device import Runtime
from apa_cli.models.loading import (
    MERGE,
    first_line,
    freeze,
    load_config,
    load_pretrained,
    load_tokenizer,
    resolve_model_path,
)
from apa_cli.models.token_ids import check_vocabulary
from apa_cli.models.weight_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_adapter,
    fetch_adapter,
    read_safetensors,
)

HEADS = ("score.weight", "classifier.weight", "out_proj.weight", "logits_proj.weight")  # transformers' last layers
PREFIX = "base_model.model."  # what PEFT puts before the names of the base


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What is loaded: the model that the user named, or the base of the adapter that the user named."""

    where: str  # its key
    path: str  # as the user gave it
    base: str
    revision: str | None  # of the base
    adapter: Path | None = None  # its folder
    weights: dict[str, Tensor] = field(default_factory=dict)  # the adapter's, by their names in the base

    def load(self, loader: Callable[..., Any], *path: str, **options: Any) -> Any:
        """`loader` of the base, whose errors are reported as the adapter's, which names it."""
        try:
            return loader(self.where, *(path or (self.base,)), **{"revision": self.revision, **options})
        except UserError as error:
            if self.adapter is None:
                raise
            problem = f"{self.path} is a PEFT adapter on {self.base}: {error.problem}"
            remedy = f"correct base_model_name_or_path in its {ADAPTER_CONFIG}, or {MERGE}"
            raise UserError(self.where, problem, remedy) from error

    def config(self) -> Any:
        config = self.load(load_config)
        if heads := [weight for name, weight in self.weights.items() if name.endswith(HEADS)]:
            config.num_labels = len(heads[-1])
        return config

    def tokenizer(self) -> Any:
        """The adapter's own if it has one, else the base's."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file():
            return self.load(load_tokenizer, str(self.adapter), revision=None)
        return self.load(load_tokenizer)


def load_classifier(path: str, revision: str | None, runtime: Runtime, where: str) -> tuple[Any, Any]:
    """A reward model, frozen and on its device, and its tokenizer; `where` is its key. Adapters are merged."""
    from transformers import AutoModelForSequenceClassification

    place = _place(path, revision, where)
    load = partial(load_pretrained, AutoModelForSequenceClassification)
    model = place.load(load, config=place.config(), dtype=runtime.frozen_dtype, brought=place.weights)
    model, tokenizer = _merged(model, place), place.tokenizer()
    check_vocabulary(where, path, model, tokenizer)
    return freeze(model.to(runtime.device)), tokenizer


def classifier_tokenizer(path: str, revision: str | None, where: str) -> Any:
    return _place(path, revision, where).tokenizer()


def classifier_config(path: str, revision: str | None, where: str) -> Any:
    """The configuration that the model will have."""
    return _place(path, revision, where).config()


def _place(path: str, revision: str | None, where: str) -> _Place:
    folder, whole = Path(resolve_model_path(where, path)), _Place(where=where, path=path, base=path, revision=revision)
    if not folder.is_dir():
        from transformers.utils.peft_utils import find_adapter_config_file

        try:
            if find_adapter_config_file(path, revision=revision) is None:
                return whole
        except Exception:  # no network, no such name: loading the model reports it
            return whole
        folder = fetch_adapter(where, path, revision)
    elif not (folder / ADAPTER_CONFIG).is_file():
        return whole
    check_adapter(where, folder)
    from peft import PeftConfig  # a second to import, and most reward models are whole

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(where, f"{folder / ADAPTER_CONFIG} cannot be read ({first_line(error)})", MERGE) from error
    check_kind(where, str(folder), config)
    if not (base := config.base_model_name_or_path):
        raise UserError(where, f"the adapter {path} does not name its base", MERGE)
    weights = read_safetensors(where, folder / ADAPTER_WEIGHTS)
    weights = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
    return _Place(where=where, path=path, base=base, revision=config.revision, adapter=folder, weights=weights)


def _merged(model: Any, place: _Place) -> Any:
    if place.adapter is None:
        return model
    from peft import PeftModel, get_peft_model_state_dict

    try:
        joined = PeftModel.from_pretrained(model, str(place.adapter))
        wanted = {name.removeprefix(PREFIX) for name in get_peft_model_state_dict(joined, save_embedding_layers=False)}
        if wrong := sorted(wanted ^ place.weights.keys()):
            problem = f"{place.path} is no adapter of {place.base}: {wrong[0]} is in one of them alone"
            raise UserError(place.where, problem, MERGE)
        return joined.merge_and_unload(safe_merge=True)  # raises ValueError for numbers that are not finite
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, OSError, SafetensorError) as error:
        problem = f"the adapter {place.path} cannot be merged into {place.base} ({first_line(error)})"
        raise UserError(place.where, problem, MERGE) from error
