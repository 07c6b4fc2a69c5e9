"""Prompts to token ids, as the policy is to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apa_cli.data.formats import Row
from apa_cli.data.messages import SYSTEM, as_text, without_oldest_turn
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 32  # characters before a text that decide its first token


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    arguments: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
) -> list[list[int]]:
    """Token ids of each row, uncut.

    Text gets the special tokens that the tokenizer puts in front (a BOS, say) and none that it appends: a prompt that
    ends with EOS asks for no answer. Messages go through the chat template with `arguments`, and it writes the special
    tokens, a BOS among them where the model has one. `system_prompt` is data.system_prompt, for errors.
    Raises UserError for a missing template, a template that refuses the messages, and a prompt without tokens.
    """
    if not rows:
        return []
    before = 0  # special tokens in front of the prompt's own
    if rows[0].messages is not None:
        texts = _render(rows, tokenizer, dict(arguments or {}), system_prompt)
        ids = tokenize(tokenizer, texts, special=False)
    else:
        ids = tokenize(tokenizer, [row.text for row in rows], special=True)
        before, after = added_tokens(tokenizer, rows[0].text)
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
    bare, full = (tokenize(tokenizer, [text], special=special)[0] for special in (False, True))
    if not bare:
        return len(full), 0
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return start, len(full) - start - len(bare)
    return 0, 0


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    """Token ids of each text, uncut; `special` with the tokens that the tokenizer puts around one."""
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        verbose=False,  # no warning about length: data.max_prompt_tokens sees to that
    )
    return [list(ids) for ids in encoded["input_ids"]]


def tokens_after(tokenizer: PreTrainedTokenizerBase, contexts: list[str], texts: list[str]) -> list[list[int]]:
    """Ids of each text where it follows its context; alone where the two would share a token."""
    contexts = [context[-CONTEXT:] for context in contexts]
    before, whole, alone = (
        tokenize(tokenizer, parts, special=False)
        for parts in (contexts, [c + t for c, t in zip(contexts, texts, strict=True)], texts)
    )
    return [w[len(b) :] if w[: len(b)] == b else a for b, w, a in zip(before, whole, alone, strict=True)]


def _render(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any], system_prompt: str | None
) -> list[str]:
    template = tokenizer.chat_template
    if not template:
        problem = "the prompts are messages, and the policy's tokenizer has no chat template"
        raise UserError("data.format", problem, "use a policy with one, or prompts as text")
    for name in arguments:
        if name not in str(template):
            problem = f"the policy's chat template reads no argument {name}"
            raise UserError("data.template_arguments", problem, "check its name, or leave it out")

    def render(messages: list[dict[str, str]]) -> str:
        options = {**arguments, "add_generation_prompt": True, "tokenize": False}
        return str(tokenizer.apply_chat_template(messages, **options))  # type: ignore[arg-type]

    texts = []
    for row in rows:
        messages = [dict(message) for message in row.messages or ()]
        system = [message["content"] for message in messages if message["role"] in SYSTEM]
        where = "data.system_prompt" if system_prompt is not None and system_prompt in system else row.place
        try:
            texts.append(render(messages))
        except Exception as error:  # a template may fail in any way
            others = [message for message in messages if message["role"] not in SYSTEM]
            if system and _is_rendered(render, others):
                problem = f"the policy's chat template takes no system message: {error}"
                raise UserError(where, problem, _remedy(where, row)) from None
            problem = f"the chat template refuses the messages: {error}"
            roles = ", ".join(message["role"] for message in messages[:8]) + (", …" if len(messages) > 8 else "")
            remedy = f"write them the way this policy's template expects (this row: {roles})"
            raise UserError(row.place, problem, remedy) from None
        if any(content.strip() not in texts[-1] for content in system):
            problem = "the policy's chat template leaves the system message out"
            raise UserError(where, problem, _remedy(where, row))
    return texts


def _remedy(where: str, row: Row) -> str:
    """What to do about a system message that the template does not take."""
    gone = "set data.system_prompt=null" if where != row.place else "take it out"
    return f"{gone}, and put what it says at the head of the user's message"


def _is_rendered(render: Callable[[list[dict[str, str]]], str], messages: list[dict[str, str]]) -> bool:
    try:
        render(messages)
    except Exception:
        return False
    return True
