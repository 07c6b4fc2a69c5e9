"""Token ids that model and tokenizers agree on: which ids a model knows, which end a response, which mean the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

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
_ANSWER = "Zq7answerZq7"  # a text that no template or tokenizer treats specially


def known_ids(model: Any) -> int:
    """The number of rows of the embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def filling_id(tokenizer: Any, known: int, ends: Iterable[int] = ()) -> int:
    """An id that the model knows, for padding: the pad token if possible, else an EOS, else 0."""
    for token in (tokenizer.pad_token_id, *ends, tokenizer.eos_token_id):
        if token is not None and token < known:
            return int(token)
    return 0


def check_ids(rows: Iterable[Iterable[int]], known: int, tokenizer: Any, *, key: str, whose: str) -> None:
    """Raise UserError for an id that the embedding lacks, which would be an index out of range."""
    largest = max((max(row, default=0) for row in rows), default=0)
    if largest >= known:
        token = tokenizer.convert_ids_to_tokens(largest)
        problem = f"the tokenizer writes {token} as id {largest}, and {whose} knows ids below {known}"
        raise UserError(key, problem, "use the model's own tokenizer, or resize its embeddings for the added tokens")


def check_vocabulary(key: str, path: str, model: Any, tokenizer: Any) -> None:
    """Raise UserError if the tokenizer has ids that the model does not know.

    Checks the added tokens that every text gets. Others are checked when texts are read, as few texts hold them.
    """
    known = known_ids(model)
    if tokenizer.vocab_size > known:
        problem = f"the tokenizer in {path} has {tokenizer.vocab_size} ids, and its model {known}"
        raise UserError(key, problem, "give a folder whose tokenizer is the model's own")
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    check_ids([[*tokenizer("a")["input_ids"], *eos]], known, tokenizer, key=key, whose=f"the model in {path}")


def end_tokens(model: Any, tokenizer: Any, stop_tokens: Sequence[str] = ()) -> dict[int, str]:
    """The ids that end a response, each with its origin. Raises UserError if one of `stop_tokens` is no token."""
    known = known_ids(model)
    configured = getattr(model.generation_config, "eos_token_id", None)
    found: dict[int, str] = {}
    if tokenizer.eos_token_id is not None:
        found[int(tokenizer.eos_token_id)] = "EOS"
    for token in configured if isinstance(configured, list) else [configured]:
        if token is not None and token < known:
            found.setdefault(int(token), "generation_config.json")
    turn = end_of_turn(tokenizer)
    if turn is not None and turn < known:
        found.setdefault(turn, "the chat template's end of turn")
    vocabulary = tokenizer.get_vocab()
    for name in stop_tokens:
        if vocabulary.get(name, known) >= known:
            near = get_close_matches(name, [token.content for token in tokenizer.added_tokens_decoder.values()], n=1)
            remedy = "name a token of its vocabulary; strings go into generation.stop"
            if near:
                remedy = f"did you mean {near[0]}?"
            raise UserError("generation.stop_tokens", f"{name} is no token of the policy's tokenizer", remedy)
        found.setdefault(int(vocabulary[name]), "generation.stop_tokens")
    return dict(sorted(found.items()))


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after an assistant's message, or None."""
    if not tokenizer.chat_template:
        return None
    dialogue = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(dialogue, tokenize=False))
    except Exception:  # a template may fail in any way; reading the prompts reports it
        return None
    _, found, tail = text.rpartition(_ANSWER)
    if not found or not tail.strip():
        return None
    added = tokenizer.added_tokens_decoder  # special tokens, and others that are never split
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    first = next((int(i) for i in ids if i in added or tokenizer.decode([i]).strip()), None)
    return first if first in added else None


def same_tokenizer(a: Any, b: Any) -> bool:
    """Whether two tokenizers turn every text into the same ids."""
    backends: list[Any] = [getattr(t, "backend_tokenizer", None) for t in (a, b)]
    if None in backends:
        return type(a) is type(b) and a.get_vocab() == b.get_vocab() and a.all_special_ids == b.all_special_ids
    ours, theirs = (json.loads(backend.to_str()) | {"padding": None, "truncation": None} for backend in backends)
    return bool(ours == theirs)


def check_same_ids(key: str, path: str, policy_tokenizer: Any, **options: Any) -> None:
    """Raise UserError if the tokenizer in `path` has other tokens for the policy's ids.

    Each may know ids that the other does not, and names of special tokens may differ, as chat models rename reserved
    ones. A folder without a tokenizer is assumed to use the policy's.
    """
    if has_tokenizer(key, path):
        check_ids_agree(key, path, load_tokenizer(key, path, **options), policy_tokenizer)
    else:
        logger.info("%s=%s has no tokenizer: it is assumed to use the policy's", key, path)


def check_ids_agree(key: str, path: str, tokenizer: Any, policy_tokenizer: Any) -> None:
    theirs, ours = ({i: token for token, i in t.get_vocab().items()} for t in (tokenizer, policy_tokenizer))
    marks, our_marks = (
        {*t.get_added_vocab().values(), *t.all_special_ids} for t in (tokenizer, policy_tokenizer)
    )  # ids of special and added tokens
    shared = theirs.keys() & ours.keys() - (marks & our_marks)
    others = sorted(i for i in shared if theirs[i] != ours[i])
    if others:
        first = others[0]
        problem = (
            f"the tokenizer in {path} is not the policy's: id {first} is {theirs[first]!r} there and {ours[first]!r} "
            f"here ({len(others)} ids differ)"
        )
        raise UserError(key, problem, "give a model with the policy's tokenizer")


def has_tokenizer(key: str, path: str) -> bool:
    folder = resolve_model_path(key, path)
    if Path(folder).is_dir():
        return any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)
    from transformers.utils import cached_file

    return cached_file(folder, TOKENIZER_FILES[0], _raise_exceptions_for_missing_entries=False) is not None
