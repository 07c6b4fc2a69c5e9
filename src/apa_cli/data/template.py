"""Messages through the policy's chat template, with a check that it writes all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from apa_cli.data.messages import CALLS, SYSTEM, TOOLS, Message
from apa_cli.data.prompts import Prompt
from apa_cli.data.table import Findings
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Zq7saidZq7"  # occurs in no template and no tokenizer
_THOUGHT = re.compile(r".*</think>", re.DOTALL)
# Markers of common templates, which are plain characters to a tokenizer that does not know them.
USUAL_MARKERS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|user|>", "<|assistant|>", "[INST]")


class Template:
    """The chat template of a tokenizer, with `arguments`. A tokenizer without one has no markers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.arguments = tokenizer, dict(arguments or {})

    def render(self, messages: Sequence[Message], tools: object = None, **options: Any) -> str:
        """The text, with the opening of the answer unless `options` disable it. Raises whatever the template raises."""
        given: dict[str, Any] = {"tools": tools} if tools else {}
        options = {"add_generation_prompt": True, **self.arguments, **given, **options, "tokenize": False}
        return str(self.tokenizer.apply_chat_template([dict(m) for m in messages], **options))

    def _renders(self, messages: Sequence[Message], tools: object = None) -> str | None:
        try:
            return self.render(messages, tools)
        except Exception:  # a template may fail in any way
            return None

    @cached_property
    def _frame(self) -> str:
        """What the template writes around the messages of user, assistant and user; "" if it refuses them."""
        if not self.tokenizer.chat_template:
            return ""
        return self._renders([{"role": role, "content": _PROBE} for role in ("user", "assistant", "user")]) or ""

    @cached_property
    def opening(self) -> str:
        """What the template writes after the last message to open the answer; "" if that is just plain words."""
        tail = self._frame.rpartition(_PROBE)[2].strip()
        return tail if re.search(r"[<\[|]", tail) else ""

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """The special tokens that the template writes."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return tuple(token for token in added if token in self._frame)

    @cached_property
    def writes_bos(self) -> bool:
        return self._frame.startswith(str(self.tokenizer.bos_token or _PROBE))

    def is_rendered(self, text: str) -> bool:
        """Whether this template has already been applied to `text`."""
        ends = (self.tokenizer.bos_token, self.tokenizer.eos_token)  # found in plain texts too
        return bool(self.opening and self.opening in text) or any(m in text for m in self.marks if m not in ends)

    def foreign_marker(self, text: str) -> str | None:
        """A marker of another common template in `text` that the tokenizer does not know."""
        found = [marker for marker in USUAL_MARKERS if marker in text and marker not in self._frame]
        return next((m for m in found if m not in self.tokenizer.get_vocab()), None)

    def render_rows(self, rows: Iterable[Prompt], *, system_prompt: str | None, findings: Findings) -> list[str]:
        """The text of each row's messages. Raises UserError, naming the row, for what the template does not accept.

        `system_prompt` is data.system_prompt, which error messages name if it is the cause.
        """
        source = str(self.tokenizer.chat_template or "")
        if not source:
            problem = "the prompts are messages, and the policy's tokenizer has no chat template"
            raise UserError("data.format", problem, "use a policy with one, or prompts as text")
        for name in self.arguments:
            if name not in source:
                problem = f"the policy's chat template reads no argument {name}"
                raise UserError("data.template_arguments", problem, "check its name, or leave it out")
        return [self._render_row(row, system_prompt, findings) for row in rows]

    def _render_row(self, row: Prompt, system_prompt: str | None, findings: Findings) -> str:
        messages, tools, place = row.messages or (), row.columns.get(TOOLS), row.place
        others = [message for message in messages if message["role"] not in SYSTEM]
        where, take_out = place, "take it out"
        if system_prompt is not None and any(m["content"] == system_prompt for m in messages if m["role"] in SYSTEM):
            where, take_out = "data.system_prompt", "set data.system_prompt=null"
        remedy = f"{take_out}, and put what it says at the head of the user's message"
        try:
            text = self.render(messages, tools)
        except Exception as error:  # a template may fail in any way
            if len(others) < len(messages) and self._renders(others, tools) is not None:
                problem = f"the policy's chat template takes no system message: {error}"
                raise UserError(where, problem, remedy) from None
            roles = ", ".join(message["role"] for message in messages[:8]) + (", …" if len(messages) > 8 else "")
            expected = f"write them the way this policy's template expects (this row: {roles})"
            raise UserError(place, f"the chat template refuses the messages: {error}", expected) from None
        for number, message in enumerate(messages, start=1):
            content = message["content"]
            if not _contains(text, content):
                if message["role"] in SYSTEM:
                    raise UserError(where, "the policy's chat template leaves the system message out", remedy)
                if not _contains(text, _THOUGHT.sub("", content)):
                    problem = f"the policy's chat template leaves out what message {number} ({message['role']}) says"
                    raise UserError(place, problem, "write it the way this template expects, or remove the row")
                findings.add("the policy's chat template leaves out the thoughts of earlier answers", place)
            if self.opening and self.opening in content:
                problem = f"a message of the {message['role']} holds a rendered chat template, {self.opening!r}"
                remedy = "give its messages one by one, or the prompt as a string with data.format=text"
                raise UserError(place, problem, remedy)
            for mark in (mark for mark in self.marks if mark in content):
                findings.add(f"{mark} in a message is read as a marker of the chat template, not as text", place)
        if tools or any(CALLS in message for message in messages):
            self._check_functions(place, messages, tools or ())
        return text

    def _check_functions(self, place: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        """Raise UserError unless the template writes every tool and call, found by names that nothing else contains."""
        names: dict[str, list[str]] = {TOOLS: [], CALLS: []}

        def renamed(function: dict[str, Any], what: str) -> dict[str, Any]:
            name, inner = f"{_PROBE}{what}{len(names[what])}x", function.get("function")
            names[what].append(name)
            if isinstance(inner, dict):
                return {**function, "function": {**inner, "name": name}}
            return {**function, "name": name}

        named = [renamed(tool, TOOLS) for tool in tools]
        calling = [{**m, CALLS: [renamed(c, CALLS) for c in m[CALLS]]} if CALLS in m else m for m in messages]
        text = self._renders(calling, named)
        if text is None:  # the template insists on certain names
            return
        if any(name not in text for name in names[TOOLS]):
            problem = f"the policy's chat template takes no {TOOLS}, or not all of them"
            raise UserError(place, problem, f"use a policy whose template does, or take the column {TOOLS!r} out")
        if any(name not in text for name in names[CALLS]):
            problem = f"the policy's chat template leaves {CALLS} out, or some of them"
            raise UserError(place, problem, "use a policy whose template takes them, or remove the row")


def _contains(text: str, content: str) -> bool:
    """Whether a text contains this content, as it is or as JSON (how some templates write the results of tools)."""
    content = content.strip()
    return content in text or any(json.dumps(content, ensure_ascii=ascii)[1:-1] in text for ascii in (False, True))
