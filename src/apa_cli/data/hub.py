"""Rows of a data set on the Hugging Face Hub, or of one that `save_to_disk` wrote: memory-mapped, read by number."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from apa_cli.data.table import Draw, Table
from apa_cli.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

SECONDS = 5.0  # time limit for the Hub's first answer
logger = logging.getLogger(__name__)


def read_hub(
    path: str, *, key: str, subset: str | None, split: str, split_key: str, revision: str | None, draw: Draw
) -> Table:
    """The rows of one split. `datasets` runs no code from the repository.

    Raises UserError, naming the key at fault, if the data set, subset or split is missing or cannot be reached.
    """
    import datasets
    from huggingface_hub import constants

    use_cache_if_unreachable()
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
    # Given the name of a reader ("json"), `datasets` would read every file of the working folder.
    if path.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{path}"):
        raise UserError(key, f"{path!r} is a reader of `datasets`, not a data set", "name a file or a data set")
    logger.info("reading %s, split %s, from the Hub", path, split)
    try:
        with _quiet():
            data = datasets.load_dataset(path, name=subset, split=split, revision=revision)
            return _table(data, path, draw, commit=_commit(data))
    except Exception as error:  # network, authentication, format: each layer has its own types
        text = " ".join(str(error).split())
        lower, short = text.lower(), text if len(text) <= 200 else f"{text[:200]}..."
        problem, remedy = f"{path} cannot be loaded: {type(error).__name__}: {short}", "see its page on the Hub"
        if "unknown split" in lower:
            key, problem, remedy = split_key, f"{path} has no split {split!r} ({short})", f"set {split_key}"
        elif "config name is missing" in lower or "builderconfig" in lower:
            problem, remedy = f"{path} has several subsets, or not this one ({short})", "set data.subset"
            key = "data.subset"
        elif isinstance(error, ConnectionError) or "offline" in lower or "couldn't reach" in lower:
            problem = f"{path} is no file here, and the Hub cannot be reached for a data set of this name"
            remedy = "correct the path, or check the network and HF_HUB_OFFLINE"
        elif isinstance(error, FileNotFoundError):
            problem = f"{path} is neither a file here nor a data set on the Hub that you can see ({short})"
            remedy = "correct the name, or `hf auth login` for one that is private or gated"
        raise UserError(key, problem, remedy) from None


def is_saved(folder: str) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict wrote this folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: str, *, source: str, split: str, split_key: str, draw: Draw) -> Table:
    """The rows of a Dataset, or of one split of a DatasetDict, that `save_to_disk` wrote. Raises UserError."""
    import datasets

    try:
        with _quiet():
            data = datasets.load_from_disk(folder)
            if isinstance(data, datasets.DatasetDict) and split in data:
                data = data[split]
            if isinstance(data, datasets.Dataset):
                return _table(data, source, draw)
    except Exception as error:  # missing or damaged files: each layer has its own types
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(source, f"is not a whole data set of save_to_disk ({reason})", "save it again") from None
    raise UserError(split_key, f"{source} has no split {split!r} (it has {', '.join(data)})", f"set {split_key}")


def _table(data: Any, source: str, draw: Draw, commit: str | None = None) -> Table:
    chosen = draw.numbers(len(data))
    some = len(chosen) < len(data)
    return Table(
        source=source,
        rows=(data.select(chosen) if some else data).to_list(),
        places=[f"{source}, row {number + 1}" for number in chosen],
        commit=commit,
        count=len(data) if some else None,
        padded=True,
    )


@cache
def use_cache_if_unreachable() -> None:
    """Behave as with HF_HUB_OFFLINE=1 if nothing answers at the Hub's address.

    Asks once: without a network, each file of a model would be tried six times.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # from any HTTP library or proxy
        logger.info("%s cannot be reached (%s): only what is cached is used", constants.ENDPOINT, error)
        constants.HF_HUB_OFFLINE = True


def _commit(data: Any) -> str | None:
    """The commit that was read, from the addresses that `datasets` records: hf://datasets/NAME@COMMIT/FILE."""
    addresses = " ".join(getattr(data.info, "download_checksums", None) or ())
    commits = set(re.findall(r"hf://datasets/[^@\s]+@([0-9a-f]{40})/", addresses))
    return commits.pop() if len(commits) == 1 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and warnings about retries; the error reports what matters."""
    import datasets

    bars, level = not datasets.are_progress_bars_disabled(), logging.root.manager.disable
    datasets.disable_progress_bars()
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
        if bars:
            datasets.enable_progress_bars()
