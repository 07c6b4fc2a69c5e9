"""Prompts to token ids, as the policy reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apa_cli.data.messages import as_text, without_oldest_turn
from apa_cli.data.prompts import RENDERED, Prompt
from apa_cli.data.table import Findings, Progress, reported
from apa_cli.data.template import Template
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 32  # characters before a text that decide its first token
CHUNK = 256  # texts in one call of the tokenizer


def encode(
    rows: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    arguments: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    findings: Findings | None = None,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Token ids of each row, without a length limit.

    Text gets the special tokens that the tokenizer puts in front (such as BOS), but none that it appends: a prompt that
    ends with EOS asks for no answer. A text that starts with its own special tokens, or was rendered by a template
    without them, gets none. Messages go through the chat template with `arguments`, which writes the special tokens.
    `system_prompt` is data.system_prompt, for error messages; `findings` collects warnings.
    Raises UserError for a missing template, one that refuses or leaves out messages, and a prompt without tokens.
    """
    if not rows:
        return []
    findings = Findings() if findings is None else findings
    template = Template(tokenizer, arguments)
    if rows[0].messages is not None:
        watched = reported("render", rows, progress, len(rows))
        texts = template.render_rows(watched, system_prompt=system_prompt, findings=findings)
        ids = own = tokenize(tokenizer, texts, special=False, progress=progress)
    else:
        ids = tokenize(tokenizer, [row.text for row in rows], special=True, progress=progress)
        before, after = added_tokens(tokenizer, rows[0].text)
        ids = [row_ids[: len(row_ids) - after] for row_ids in ids]
        own = [row_ids[before:] for row_ids in ids]
        ids = [_with_specials(row, row_ids, before, template, findings) for row, row_ids in zip(rows, ids, strict=True)]
    for row, row_ids in zip(rows, own, strict=True):
        if not row_ids:
            raise UserError(row.place, "the tokenizer makes no tokens of this prompt", "remove the row")
    return ids


def _with_specials(row: Prompt, ids: list[int], before: int, template: Template, findings: Findings) -> list[int]:
    """The ids of a text, without the first `before` of them if the text has its own special tokens."""
    rendered = template.is_rendered(row.text)
    if rendered:
        findings.add(RENDERED, row.place)
    elif marker := template.foreign_marker(row.text):
        findings.add(f"the policy's tokenizer reads {marker} as plain characters", row.place)
    doubled = before > 0 and ids[before : 2 * before] == ids[:before]
    if doubled:
        findings.add("special tokens that a text begins with are not added once more", row.place)
    return ids[before:] if doubled or (rendered and not template.writes_bos) else ids


def cut_left(ids: list[int], limit: int, bos_token_id: int | None) -> list[int]:
    """The last `limit` tokens; a BOS at the start stays there, since models that have one rely on it."""
    if len(ids) <= limit:
        return ids
    if limit > 1 and bos_token_id is not None and ids[0] == bos_token_id:
        return [bos_token_id, *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def without_oldest_turns(
    row: Prompt, limit: int, tokenizer: PreTrainedTokenizerBase, *, arguments: Mapping[str, Any] | None = None
) -> Prompt | None:
    """A chat without its oldest turns, as many as it takes to fit into `limit` tokens.

    The system message and the turn to be answered stay. None if they alone are longer.
    """
    shorter = without_oldest_turn(row.messages or ())
    while shorter is not None:
        row = replace(row, messages=shorter, text=as_text(shorter), cut=True)
        (ids,) = encode([row], tokenizer, arguments=arguments)
        if len(ids) <= limit:
            return replace(row, token_ids=tuple(ids))
        shorter = without_oldest_turn(shorter)
    return None


def added_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, int]:
    """The numbers of special tokens that the tokenizer puts before and after a text."""
    for sample in ("a", text):  # a text that begins with BOS would hide the tokenizer's own
        bare, full = (tokenize(tokenizer, [sample], special=special)[0] for special in (False, True))
        if bare:
            break
    if not bare:
        return len(full), 0
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return start, len(full) - start - len(bare)
    return 0, 0


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool, progress: Progress | None = None
) -> list[list[int]]:
    """Token ids of each text, without a length limit; with the tokenizer's `special` tokens or without them."""
    ids: list[list[int]] = []
    # verbose=False: no warning about length, which data.max_prompt_tokens limits
    options: dict[str, Any] = {"padding": False, "truncation": False, "return_attention_mask": False, "verbose": False}
    for start in range(0, len(texts), CHUNK):
        if progress is not None:
            progress("tokenize", start, len(texts))
        encoded = tokenizer(texts[start : start + CHUNK], add_special_tokens=special, **options)
        ids += map(list, encoded["input_ids"])
    return ids


def tokens_after(
    tokenizer: PreTrainedTokenizerBase, contexts: list[str], texts: list[str], progress: Progress | None = None
) -> list[list[int]]:
    """Ids of each text following its context; of the text alone if the two would share a token."""
    contexts = [context[-CONTEXT:] for context in contexts]
    before, whole, alone = (
        tokenize(tokenizer, parts, special=False, progress=progress)
        for parts in (contexts, [c + t for c, t in zip(contexts, texts, strict=True)], texts)
    )
    return [w[len(b) :] if w[: len(b)] == b else a for b, w, a in zip(before, whole, alone, strict=True)]
