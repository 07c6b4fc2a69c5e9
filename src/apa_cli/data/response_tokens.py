"""Logged responses to the token ids that the policy would have sampled, including the end of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from apa_cli.data.messages import TOOLS
from apa_cli.data.prompts import Prompt
from apa_cli.data.table import Progress
from apa_cli.data.template import Template
from apa_cli.data.tokenization import tokens_after


@dataclass(frozen=True, kw_only=True)
class ResponseEncoder:
    """Token ids of responses, at most `max_new_tokens` each, and whether each ended by then.

    A response ends with its first stop string or at EOS. A complete response without either gets an end, from which the
    policy learns to stop: `closing`, or in a chat `closing_turn`, the token with which the template closes the turn.
    """

    template: Template
    eos_token_ids: Collection[int]
    closing: int | None
    closing_turn: int | None
    stop: Sequence[str]
    max_new_tokens: int
    progress: Progress | None = None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[list[int], bool]]:
        stopped = [self._until_stop(response) for response in responses]
        bare = [
            self._turn(prompt, text) if prompt.messages is not None and not at_stop else text
            for prompt, (text, at_stop) in zip(prompts, stopped, strict=True)
        ]
        contexts = ["" if prompt.messages is not None else prompt.text for prompt in prompts]
        ids = tokens_after(self.template.tokenizer, contexts, bare, self.progress)
        ends = [self.closing if prompt.messages is None else self.closing_turn for prompt in prompts]
        return [
            self._close(row, None if at_stop else end)
            for row, end, (_, at_stop) in zip(ids, ends, stopped, strict=True)
        ]

    def _until_stop(self, response: str) -> tuple[str, bool]:
        ends = [start + len(stop) for stop in self.stop if (start := response.find(stop)) >= 0]
        return (response[: min(ends)], True) if ends else (response, False)

    def _turn(self, prompt: Prompt, response: str) -> str:
        """What the chat template writes after the prompt: the response and the end of the turn."""
        messages, tools = prompt.messages or (), prompt.columns.get(TOOLS)
        asked = self.template.render(messages, tools)
        answer = {"role": "assistant", "content": response}
        try:
            whole = self.template.render([*messages, answer], tools, add_generation_prompt=False)
        except Exception:  # a template may fail in any way; it accepted the prompt alone
            return response
        return whole.removeprefix(asked) if whole.startswith(asked) else response

    def _close(self, ids: list[int], closing: int | None) -> tuple[list[int], bool]:
        end = next((place for place, token in enumerate(ids) if token in self.eos_token_ids), None)
        if end is not None:
            ids = ids[: end + 1]
        elif closing is not None:
            ids = [*ids, closing]
        return ids[: self.max_new_tokens], len(ids) <= self.max_new_tokens
