"""Prompts to token ids, as the policy is to read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apa_cli.data.formats import Row
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each row, uncut.

    Text gets the special tokens that the tokenizer puts in front (a BOS, say) and none that it appends: a prompt that
    ends with EOS asks for no answer. Messages go through the chat template, which writes its own special tokens.
    Raises UserError for a missing template, a template that refuses the messages, and a prompt without tokens.
    """
    if not rows:
        return []
    before = 0  # special tokens in front of the prompt's own
    if rows[0].messages is not None:
        texts = _render(rows, tokenizer)
        ids = _tokenize(tokenizer, texts, special=False)
    else:
        ids = _tokenize(tokenizer, [row.text for row in rows], special=True)
        before, after = _added_tokens(tokenizer, rows[0].text)
        ids = [row_ids[: len(row_ids) - after] for row_ids in ids]
    for row, row_ids in zip(rows, ids, strict=True):
        if len(row_ids) <= before:
            raise UserError(row.place, "the tokenizer makes no tokens of this prompt", "remove the row")
    return ids


def cut_left(ids: list[int], limit: int, bos_token_id: int | None) -> list[int]:
    """The last `limit` tokens; a BOS at the start stays there, since models that have one rely on it."""
    if len(ids) <= limit:
        return ids
    if limit > 1 and bos_token_id is not None and ids[0] == bos_token_id:
        return [bos_token_id, *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def _added_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, int]:
    """How many special tokens the tokenizer puts in front of a text, and how many behind it."""
    bare, full = (_tokenize(tokenizer, [text], special=special)[0] for special in (False, True))
    if not bare:
        return len(full), 0
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return start, len(full) - start - len(bare)
    return 0, 0


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        verbose=False,  # no warning about length: data.max_prompt_tokens sees to that
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _render(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if not tokenizer.chat_template:
        problem = "the prompts are messages, and the policy's tokenizer has no chat template"
        raise UserError("data.format", problem, "use a policy with one, or prompts as text")
    texts = []
    for row in rows:
        messages = [dict(message) for message in row.messages or ()]
        try:
            texts.append(str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)))
        except Exception as error:  # a template may fail in any way
            problem = f"the chat template refuses the messages: {error}"
            raise UserError(row.place, problem, "write them the way this policy's template expects") from None
    return texts
