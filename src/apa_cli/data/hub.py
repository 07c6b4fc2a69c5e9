"""A data set of the Hugging Face Hub, or one that `save_to_disk` wrote, to rows: mapped into memory, read by number."""

from __future__ import annotations

import importlib.util
import json
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

SECONDS = 5.0  # for the Hub to answer at all
logger = logging.getLogger(__name__)


def read_hub(
    path: str,
    *,
    key: str,
    subset: str | None,
    split: str,
    split_key: str,
    revision: str | None = None,
    draw: Draw | None = None,
) -> Table:
    """The rows of one split. Data only: `datasets` runs no code from a repository, and none is asked for here.

    Raises UserError, naming the key at fault, when the data set, subset or split is missing or cannot be reached.
    """
    import datasets
    from huggingface_hub import constants

    use_cache_if_unreachable()
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
    # A reader's own name ("json") would have it read every file of the working folder.
    if path.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{path}"):
        raise UserError(key, f"{path!r} is a reader of `datasets`, not a data set", "name a file or a data set")
    logger.info("reading %s, split %s, from the Hub", path, split)
    try:
        with _quiet():
            data = datasets.load_dataset(path, name=subset, split=split, revision=revision)
            return _table(data, path, draw or Draw(), commit=_commit(data))
    except Exception as error:  # network, authentication, format: each layer has its own types
        raise _as_user_error(error, path, key, split, split_key) from None


def is_saved(folder: str) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict wrote this folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: str, *, source: str, split: str, split_key: str, draw: Draw | None = None) -> Table:
    """The rows of a Dataset, or of one split of a DatasetDict, that `save_to_disk` wrote. Raises UserError."""
    import datasets

    try:
        splits = os.path.join(folder, "dataset_dict.json")
        if os.path.isfile(splits):
            with open(splits, encoding="utf-8") as file:
                names = json.load(file)["splits"]
            if split not in names:
                problem = f"{source} has no split {split!r} (it has {', '.join(names)})"
                raise UserError(split_key, problem, f"set {split_key}")
            folder = os.path.join(folder, split)
        with _quiet():
            return _table(datasets.Dataset.load_from_disk(folder), source, draw or Draw())
    except UserError:
        raise
    except Exception as error:  # a file that is missing or torn: each layer has its own types
        problem = (
            f"is not a whole data set of save_to_disk ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        )
        raise UserError(source, problem, "save it again") from None


def _table(data: Any, source: str, draw: Draw, commit: str | None = None) -> Table:
    places = draw.places(len(data))
    some = len(places) < len(data)
    return Table(
        source=source,
        rows=(data.select(places) if some else data).to_list(),
        labels=[f"row {place + 1}" for place in places],
        commit=commit,
        count=len(data) if some else None,
        padded=True,
    )


@cache
def use_cache_if_unreachable() -> None:
    """Where nothing answers at the Hub's address, take what is cached, as with HF_HUB_OFFLINE=1.

    Asked once: without a network each file of a model would be tried for six times over.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever library carries the requests, and of its proxies
        logger.info("%s cannot be reached (%s): only what is cached is used", constants.ENDPOINT, error)
        constants.HF_HUB_OFFLINE = True


def _commit(data: Any) -> str | None:
    """The commit that the files were read at: `datasets` notes addresses such as hf://datasets/NAME@COMMIT/FILE."""
    addresses = " ".join(getattr(data.info, "download_checksums", None) or ())
    commits = set(re.findall(r"hf://datasets/[^@\s]+@([0-9a-f]{40})/", addresses))
    return commits.pop() if len(commits) == 1 else None


def _as_user_error(error: Exception, path: str, key: str, split: str, split_key: str) -> UserError:
    text = " ".join(str(error).split())
    short = text if len(text) <= 200 else f"{text[:200]}..."
    lower = text.lower()
    if "gated dataset" in lower:
        return UserError(key, f"{path} is gated on the Hub", "ask for access on its page, then `hf auth login`")
    if "unknown split" in lower:
        return UserError(split_key, f"{path} has no split {split!r} ({short})", f"set {split_key}")
    if "config name is missing" in lower or "builderconfig" in lower:
        return UserError("data.subset", f"{path} has several subsets, or not this one ({short})", "set data.subset")
    if isinstance(error, ConnectionError) or "offline" in lower or "couldn't reach" in lower:
        problem = f"{path} is no file here, and the Hub cannot be reached for a data set of this name"
        return UserError(key, problem, "correct the path, or check the network and HF_HUB_OFFLINE")
    if isinstance(error, FileNotFoundError):
        problem = f"{path} is neither a file here nor a data set on the Hub that you can see ({short})"
        return UserError(key, problem, "correct the name, or `hf auth login` for a private one")
    return UserError(key, f"{path} cannot be loaded: {type(error).__name__}: {short}", "see its page on the Hub")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings about retries: what matters ends up in the error."""
    import datasets

    bars = datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [other.level for other in loggers]
    datasets.disable_progress_bars()
    for other in loggers:
        other.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for other, level in zip(loggers, levels, strict=True):
            other.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
