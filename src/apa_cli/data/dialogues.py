"""Plain prompts read as chats: for models that expect messages."""

from __future__ import annotations

import re

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def hh_messages(prompt: str, *, torn: bool = False) -> list[dict[str, str]]:
    """The turns of an HH prompt "\\n\\nHuman: …\\n\\nAssistant:" as messages, the open turn at its end left out.

    Text before the first turn is a system message, and the user's where that turn is the assistant's. Of a prompt that
    is `torn`, cut on the left, it is the rest of a turn: an assistant's is left out, since templates begin with the
    user. Turns of one speaker that follow each other are one message: templates want speakers to alternate. A prompt
    without such turns is one user message.
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
    if preface and messages[0]["role"] == "assistant":
        messages.insert(0, {"role": "user", "content": preface})
    elif preface and not torn:
        messages.insert(0, {"role": "system", "content": preface})
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return _alternating(messages)


def _alternating(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            content = "\n\n".join(part for part in (joined[-1]["content"], message["content"]) if part)
            joined[-1] = {"role": message["role"], "content": content}
        else:
            joined.append(message)
    return joined
