"""Load a sequence classifier and its tokenizer, from a model or a PEFT adapter on its base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

HEADS = ("score", "classifier", "out_proj", "logits_proj")  # last layers of transformers' classifiers
PREFIX = "base_model.model."  # what PEFT puts before the names of the base


@dataclass(frozen=True, kw_only=True)
class _Adapter:
    """A PEFT adapter that turns its base into a classifier."""

    path: str  # as the user gave it
    folder: Path
    base: str
    revision: str | None
    weights: dict[str, Tensor]  # by their names in the base, with the head's if the adapter trained one

    @property
    def labels(self) -> int | None:
        """Outputs of the adapter's head."""
        heads = [t for name, t in self.weights.items() if name.endswith(tuple(f"{head}.weight" for head in HEADS))]
        return len(heads[-1]) if heads else None


def load_classifier(path: str, revision: str | None, runtime: Runtime, where: str) -> tuple[Any, Any]:
    """A reward model, frozen and on its device, and its tokenizer; `where` is its key. Adapters are merged."""
    from transformers import AutoModelForSequenceClassification

    adapter = _adapter(where, path, revision)
    if adapter is None:
        config = load_config(where, path, revision=revision)
        model = load_pretrained(
            AutoModelForSequenceClassification,
            where,
            path,
            revision=revision,
            config=config,
            dtype=runtime.frozen_dtype,
        )
    else:
        with _said_of(adapter, where):
            model = load_pretrained(
                AutoModelForSequenceClassification,
                where,
                adapter.base,
                revision=adapter.revision,
                config=_base_config(where, adapter),
                dtype=runtime.frozen_dtype,
                brought=adapter.weights,
            )
        model = _merged(where, model, adapter)
    tokenizer = classifier_tokenizer(path, revision, where)
    check_vocabulary(where, path, model, tokenizer)
    return freeze(model.to(runtime.device)), tokenizer


def classifier_tokenizer(path: str, revision: str | None, where: str) -> Any:
    """The tokenizer of the model, for an adapter its own if it has one, else its base's."""
    adapter = _adapter(where, path, revision)
    if adapter is None:
        return load_tokenizer(where, path, revision=revision)
    own = (adapter.folder / "tokenizer_config.json").is_file()
    with _said_of(adapter, where):
        return load_tokenizer(
            where, str(adapter.folder) if own else adapter.base, revision=None if own else adapter.revision
        )


def classifier_config(path: str, revision: str | None, where: str) -> Any:
    """The configuration that the model will have."""
    adapter = _adapter(where, path, revision)
    if adapter is None:
        return load_config(where, path, revision=revision)
    with _said_of(adapter, where):
        return _base_config(where, adapter)


def _base_config(where: str, adapter: _Adapter) -> Any:
    config = load_config(where, adapter.base, revision=adapter.revision)
    if adapter.labels is not None:
        config.num_labels = adapter.labels
    return config


def _adapter(where: str, path: str, revision: str | None) -> _Adapter | None:
    """None for a whole model."""
    folder = Path(resolve_model_path(where, path))
    if not folder.is_dir():
        from transformers.utils.peft_utils import find_adapter_config_file

        try:
            if find_adapter_config_file(path, revision=revision) is None:
                return None
        except Exception:  # no network, no such name: loading the model reports it
            return None
        folder = fetch_adapter(where, path, revision)
    elif not (folder / ADAPTER_CONFIG).is_file():
        return None
    check_adapter(where, folder)
    from peft import PeftConfig  # a second to import, and most reward models are whole

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(where, f"{folder / ADAPTER_CONFIG} cannot be read ({first_line(error)})", MERGE) from error
    check_kind(where, str(folder), config)
    if not config.base_model_name_or_path:
        raise UserError(where, f"the adapter {path} does not name its base", MERGE)
    weights = read_safetensors(where, folder / ADAPTER_WEIGHTS)
    return _Adapter(
        path=path,
        folder=folder,
        base=config.base_model_name_or_path,
        revision=config.revision,
        weights={name.removeprefix(PREFIX): weight for name, weight in weights.items()},
    )


def _merged(where: str, model: Any, adapter: _Adapter) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    try:
        joined = PeftModel.from_pretrained(model, str(adapter.folder))
        wanted = {name.removeprefix(PREFIX) for name in get_peft_model_state_dict(joined, save_embedding_layers=False)}
        if wrong := sorted(wanted ^ adapter.weights.keys()):
            problem = f"{adapter.path} is no adapter of {adapter.base}: {wrong[0]} is in one of them alone"
            raise UserError(where, problem, MERGE)
        return joined.merge_and_unload(safe_merge=True)  # raises ValueError for numbers that are not finite
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, OSError, SafetensorError) as error:
        problem = f"the adapter {adapter.path} cannot be merged into {adapter.base} ({first_line(error)})"
        raise UserError(where, problem, MERGE) from error


@contextmanager
def _said_of(adapter: _Adapter, where: str) -> Iterator[None]:
    """Report errors of the base as the adapter's, which names it."""
    try:
        yield
    except UserError as error:
        problem = f"{adapter.path} is a PEFT adapter on {adapter.base}: {error.problem}"
        remedy = f"correct base_model_name_or_path in its {ADAPTER_CONFIG}, or {MERGE}"
        raise UserError(where, problem, remedy) from error
