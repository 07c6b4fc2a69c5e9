"""Plain prompts read as chats, for reward models that expect messages."""

from __future__ import annotations

import re

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def hh_messages(prompt: str) -> list[dict[str, str]]:
    """The turns of an HH prompt "\\n\\nHuman: …\\n\\nAssistant:" as messages, the open turn at its end left out.

    Text before the first turn is a system message. A prompt without such turns is one user message.
    """
    marks = list(_TURN.finditer(prompt))
    if not marks:
        return [{"role": "user", "content": prompt.strip()}]
    ends = [mark.start() for mark in marks[1:]] + [len(prompt)]
    messages = [
        {"role": SPEAKERS[mark[1]], "content": prompt[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]
    preface = prompt[: marks[0].start()].strip()
    if preface:
        messages.insert(0, {"role": "system", "content": preface})
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages
