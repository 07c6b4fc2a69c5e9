"""Messages through the policy's chat template, and a check that nothing of them stays behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from apa_cli.data.formats import Row
from apa_cli.data.messages import CALLS, SYSTEM, TOOLS, Message
from apa_cli.data.table import Findings
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAID = "Zq7saidZq7"  # no template, and no tokenizer, has a use for it
_THOUGHT = re.compile(r".*</think>", re.DOTALL)
# Of the usual templates. A tokenizer that does not know one reads it as plain characters.
USUAL_MARKERS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|user|>", "<|assistant|>", "[INST]")

RENDERED = "text that holds the markers of the policy's chat template is read as it stands"


class Template:
    """The chat template of a tokenizer, with `arguments`; also for tokenizers without one, which have no marks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.arguments = tokenizer, dict(arguments or {})

    def render(self, messages: Sequence[Message], tools: object = None, **options: Any) -> str:
        """As text, with the opening of the answer unless `options` say otherwise. Raises whatever the template does."""
        given: dict[str, Any] = {"tools": tools} if tools else {}
        options = {"add_generation_prompt": True, **self.arguments, **given, **options, "tokenize": False}
        return str(self.tokenizer.apply_chat_template([dict(m) for m in messages], **options))

    @cached_property
    def _frame(self) -> str:
        """What it writes around a user's message, an answer and a user's message."""
        if not self.tokenizer.chat_template:
            return ""
        dialogue = [{"role": role, "content": _SAID} for role in ("user", "assistant", "user")]
        try:
            return self.render(dialogue)
        except Exception:  # a template may fail in any way; the rows' own messages will tell
            return ""

    @cached_property
    def opening(self) -> str:
        """What it writes behind the last message for the answer to begin; "" where that is no more than plain words."""
        tail = self._frame.rpartition(_SAID)[2].strip()
        return tail if re.search(r"[<\[|]", tail) else ""

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """The special tokens that it writes; in a text they are no text."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return tuple(token for token in added if token in self._frame)

    @cached_property
    def writes_bos(self) -> bool:
        return self._frame.startswith(str(self.tokenizer.bos_token or _SAID))

    def is_rendered(self, text: str) -> bool:
        """Whether a text has been through this template before."""
        ends = (self.tokenizer.bos_token, self.tokenizer.eos_token)  # plain texts have these too
        return bool(self.opening and self.opening in text) or any(m in text for m in self.marks if m not in ends)

    def foreign_marker(self, text: str) -> str | None:
        """A marker of another family's template, which the tokenizer does not know."""
        found = [marker for marker in USUAL_MARKERS if marker in text and marker not in self._frame]
        return next((m for m in found if m not in self.tokenizer.get_vocab()), None)

    def render_rows(self, rows: Iterable[Row], *, system_prompt: str | None, findings: Findings) -> list[str]:
        """The text of each row's messages. Raises UserError, naming the row, for what the template does not take.

        `system_prompt` is data.system_prompt, for errors.
        """
        source = str(self.tokenizer.chat_template or "")
        if not source:
            problem = "the prompts are messages, and the policy's tokenizer has no chat template"
            raise UserError("data.format", problem, "use a policy with one, or prompts as text")
        for name in self.arguments:
            if name not in source:
                problem = f"the policy's chat template reads no argument {name}"
                raise UserError("data.template_arguments", problem, "check its name, or leave it out")
        texts = []
        for row in rows:
            messages = row.messages or ()
            system = [message["content"] for message in messages if message["role"] in SYSTEM]
            where = "data.system_prompt" if system_prompt is not None and system_prompt in system else row.place
            texts.append(self._checked(row, messages, where))
            for message in messages:
                self._look_at(message, texts[-1], row.place, findings)
            for name in dict.fromkeys(name for m in messages for name in m if name not in ("role", "content", CALLS)):
                bare = [{key: value for key, value in m.items() if key != name} for m in messages]
                if name not in source or self._renders(bare, row.columns.get(TOOLS)) == texts[-1]:
                    findings.add(f"the policy's chat template does not read {name!r} of a message", row.place)
        return texts

    def _checked(self, row: Row, messages: Sequence[Message], system_at: str) -> str:
        """The text of one row, with all that it says."""
        tools = row.columns.get(TOOLS)
        try:
            text = self.render(messages, tools)
        except Exception as error:  # a template may fail in any way
            others = [message for message in messages if message["role"] not in SYSTEM]
            if len(others) < len(messages) and self._renders(others, tools) is not None:
                problem = f"the policy's chat template takes no system message: {error}"
                raise UserError(system_at, problem, _remedy(system_at, row)) from None
            problem = f"the chat template refuses the messages: {error}"
            roles = ", ".join(message["role"] for message in messages[:8]) + (", …" if len(messages) > 8 else "")
            remedy = f"write them the way this policy's template expects (this row: {roles})"
            raise UserError(row.place, problem, remedy) from None
        for number, message in enumerate(messages, start=1):
            if _stands(message["content"], text):
                continue
            if message["role"] in SYSTEM:
                problem = "the policy's chat template leaves the system message out"
                raise UserError(system_at, problem, _remedy(system_at, row))
            if not _stands(_THOUGHT.sub("", message["content"]), text):
                problem = f"the policy's chat template leaves out what message {number} ({message['role']}) says"
                raise UserError(row.place, problem, "write it the way this template expects, or remove the row")
        calls = any(CALLS in message for message in messages)
        if tools or calls:
            self._check_functions(row, messages, tools, calls)
        return text

    def _check_functions(self, row: Row, messages: Sequence[Message], tools: Any, calls: bool) -> None:
        """Whether every tool and call is written: under other names, that a text has for no other reason."""
        named = [_renamed(tool, f"{_SAID}tool{i}x") for i, tool in enumerate(tools or ())]
        calling = [
            {**m, CALLS: [_renamed(call, f"{_SAID}call{i}_{j}x") for j, call in enumerate(m[CALLS])]}
            if CALLS in m
            else m
            for i, m in enumerate(messages)
        ]
        text = self._renders(calling, named)
        if text is None:  # it insists on names
            return
        if any(f"{_SAID}tool{i}x" not in text for i in range(len(named))):
            problem = f"the policy's chat template takes no {TOOLS}, or not all of them"
            raise UserError(row.place, problem, f"use a policy whose template does, or take the column {TOOLS!r} out")
        if any(
            f"{_SAID}call{i}_{j}x" not in text for i, m in enumerate(messages) for j in range(len(m.get(CALLS, ())))
        ):
            problem = f"the policy's chat template leaves {CALLS} out, or some of them"
            raise UserError(row.place, problem, "use a policy whose template takes them, or remove the row")

    def _renders(self, messages: Sequence[Message], tools: object) -> str | None:
        try:
            return self.render(messages, tools)
        except Exception:
            return None

    def _look_at(self, message: Message, text: str, place: str, findings: Findings) -> None:
        """Markers in what a message says: they would begin and end turns."""
        content = message["content"]
        if self.opening and self.opening in content:
            problem = f"a message of the {message['role']} holds a rendered chat template, {_brief(self.opening)}"
            raise UserError(
                place, problem, "give its messages one by one, or the prompt as a string with data.format=text"
            )
        for mark in self.marks:
            if mark in content:
                findings.add(f"{mark} in a message is read as a marker of the chat template, not as text", place)
        if not _stands(content, text):
            findings.add("the policy's chat template leaves out the thoughts of earlier answers", place)


def _renamed(function: dict[str, Any], name: str) -> dict[str, Any]:
    """A tool or a call under another name, in either of its two shapes."""
    inner = function.get("function")
    return {**function, "function": {**inner, "name": name}} if isinstance(inner, dict) else {**function, "name": name}


def _stands(content: str, text: str) -> bool:
    """Whether a text holds this content, as it is or as JSON, in which some templates write what tools return."""
    content = content.strip()
    return content in text or any(json.dumps(content, ensure_ascii=ascii)[1:-1] in text for ascii in (False, True))


def _brief(mark: str) -> str:
    return repr(mark if len(mark) <= 60 else f"{mark[:40]}…{mark[-15:]}")


def _remedy(where: str, row: Row) -> str:
    """What to do about a system message that the template does not take."""
    gone = "set data.system_prompt=null" if where != row.place else "take it out"
    return f"{gone}, and put what it says at the head of the user's message"
