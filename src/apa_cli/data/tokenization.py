"""Prompts to token ids, as the policy is to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apa_cli.data.formats import Row
from apa_cli.data.messages import as_text, without_oldest_turn
from apa_cli.data.table import Findings, Progress, told
from apa_cli.data.template import RENDERED, Template
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 32  # characters before a text that decide its first token
CHUNK = 200_000, 32  # characters and texts that one call of the tokenizer takes at least


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    arguments: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    findings: Findings | None = None,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Token ids of each row, uncut.

    Text gets the special tokens that the tokenizer puts in front (a BOS, say) and none that it appends: a prompt that
    ends with EOS asks for no answer. A text that begins with them, or that has been through a chat template which
    writes none, gets none. Messages go through the chat template with `arguments`, and it writes the special
    tokens, a BOS among them where the model has one. `system_prompt` is data.system_prompt, for errors. `findings`
    takes what is worth a warning.
    Raises UserError for a missing template, a template that refuses or leaves out what the messages say, and a prompt
    without tokens.
    """
    if not rows:
        return []
    findings = Findings() if findings is None else findings
    template = Template(tokenizer, arguments)
    if rows[0].messages is not None:
        watched = told("render", rows, progress, len(rows))
        texts = template.render_rows(watched, system_prompt=system_prompt, findings=findings)
        ids = tokenize(tokenizer, texts, special=False, progress=progress)
        own = ids
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


def _with_specials(row: Row, ids: list[int], before: int, template: Template, findings: Findings) -> list[int]:
    """The ids of a text, without the first `before` of them where the text brings its own special tokens."""
    rendered = template.is_rendered(row.text)
    if rendered:
        findings.add(RENDERED, row.place)
    elif marker := template.foreign_marker(row.text):
        findings.add(f"the policy's tokenizer reads {marker} as plain characters", row.place)
    if before and ids[before : 2 * before] == ids[:before]:
        findings.add("special tokens that a text begins with are not added once more", row.place)
        return ids[before:]
    return ids[before:] if before and rendered and not template.writes_bos else ids


def cut_left(ids: list[int], limit: int, bos_token_id: int | None) -> list[int]:
    """The last `limit` tokens; a BOS at the start stays there, since models that have one rely on it."""
    if len(ids) <= limit:
        return ids
    if limit > 1 and bos_token_id is not None and ids[0] == bos_token_id:
        return [bos_token_id, *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def without_oldest_turns(
    row: Row, limit: int, tokenizer: PreTrainedTokenizerBase, *, arguments: Mapping[str, Any] | None = None
) -> tuple[Row, list[int]] | None:
    """A dialogue of which the oldest turns are left out, whole, until it has `limit` tokens or fewer.

    The system message and the turn to be answered stay. None where these alone are longer.
    """
    shorter = without_oldest_turn(row.messages or ())
    while shorter is not None:
        row = replace(row, messages=shorter, text=as_text(shorter))
        ids = encode([row], tokenizer, arguments=arguments)[0]
        if len(ids) <= limit:
            return row, ids
        shorter = without_oldest_turn(shorter)
    return None


def added_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, int]:
    """How many special tokens the tokenizer puts in front of a text, and how many behind it."""
    for sample in ("a", text):  # a text that begins with BOS would hide where its own begins
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
    """Token ids of each text, uncut; `special` with the tokens that the tokenizer puts around one."""
    ids: list[list[int]] = []
    while len(ids) < len(texts):
        start = end = len(ids)
        if progress is not None:
            progress("tokenize", start, len(texts))
        characters = 0
        while end < len(texts) and (characters < CHUNK[0] or end - start < CHUNK[1]):
            characters, end = characters + len(texts[end]), end + 1
        encoded = tokenizer(
            texts[start:end],
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,  # no warning about length: data.max_prompt_tokens sees to that
        )
        ids += map(list, encoded["input_ids"])
    return ids


def tokens_after(
    tokenizer: PreTrainedTokenizerBase, contexts: list[str], texts: list[str], progress: Progress | None = None
) -> list[list[int]]:
    """Ids of each text where it follows its context; alone where the two would share a token."""
    contexts = [context[-CONTEXT:] for context in contexts]
    before, whole, alone = (
        tokenize(tokenizer, parts, special=False, progress=progress)
        for parts in (contexts, [c + t for c, t in zip(contexts, texts, strict=True)], texts)
    )
    return [w[len(b) :] if w[: len(b)] == b else a for b, w, a in zip(before, whole, alone, strict=True)]
