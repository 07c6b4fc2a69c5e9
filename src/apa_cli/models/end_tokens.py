"""The tokens that end a response: EOS, the chat template's end of turn, and what the user adds."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from apa_cli.errors import UserError
from apa_cli.models.limits import known_ids

_ANSWER = "Zq7answerZq7"  # no template, and no tokenizer, has a use for it


def end_tokens(model: Any, tokenizer: Any, stop_tokens: Sequence[str] = ()) -> dict[int, str]:
    """Id to where it comes from, in words. Raises UserError for a name in `stop_tokens` that is no token."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    known = known_ids(model)
    found: dict[int, str] = {}
    if tokenizer.eos_token_id is not None:
        found[int(tokenizer.eos_token_id)] = "EOS"
    for token in configured if isinstance(configured, list) else [configured]:
        if token is not None and token < known:
            found.setdefault(int(token), "generation_config.json")
    turn = end_of_turn(tokenizer)
    if turn is not None and turn < known:
        found.setdefault(turn, "the chat template's end of turn")
    for name in stop_tokens:
        found.setdefault(_token_id(tokenizer, name, known), "generation.stop_tokens")
    return dict(sorted(found.items()))


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the chat template writes behind an assistant's message; None where it writes none."""
    if not tokenizer.chat_template:
        return None
    dialogue = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(dialogue, tokenize=False))
    except Exception:  # a template may fail in any way; the prompts' own messages will tell
        return None
    _, found, tail = text.rpartition(_ANSWER)
    if not found or not tail.strip():
        return None
    added = tokenizer.added_tokens_decoder  # special ones, and those that are only never split
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    first = next((int(i) for i in ids if i in added or tokenizer.decode([i]).strip()), None)
    return first if first in added else None


def _token_id(tokenizer: Any, name: str, known: int) -> int:
    vocabulary = tokenizer.get_vocab()
    if vocabulary.get(name, known) >= known:
        near = get_close_matches(name, [token.content for token in tokenizer.added_tokens_decoder.values()], n=1)
        remedy = (
            f"did you mean {near[0]}?" if near else "name a token of its vocabulary; strings go into generation.stop"
        )
        raise UserError("generation.stop_tokens", f"{name} is no token of the policy's tokenizer", remedy)
    return int(vocabulary[name])
