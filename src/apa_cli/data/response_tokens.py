"""Logged responses to the token ids that the policy would have sampled, its end of text included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apa_cli.data.messages import TOOLS
from apa_cli.data.prompts import Prompt
from apa_cli.data.table import Progress
from apa_cli.data.template import Template
from apa_cli.data.tokenization import tokens_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ResponseEncoder:
    """Token ids of a response, at most `max_new_tokens`, and whether it had ended by then.

    A response is over at its first stop string, which it keeps, or at EOS. A complete one that says neither gets an
    EOS, so that the policy learns to stop; a chat response the token that its template closes the turn with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: Sequence[int],
        closing: int | None,
        closing_turn: int | None,
        stop: Sequence[str],
        max_new_tokens: int,
        arguments: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.tokenizer, self.stop, self.max_new_tokens = tokenizer, stop, max_new_tokens
        self.eos_token_ids = set(eos_token_ids)
        self.closing, self.closing_turn = closing, closing_turn
        self.template, self.progress = Template(tokenizer, arguments), progress

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[list[int], bool]]:
        stopped = [self._until_stop(response) for response in responses]
        bare = [
            self._turn(prompt, text) if prompt.messages is not None and not at_stop else text
            for prompt, (text, at_stop) in zip(prompts, stopped, strict=True)
        ]
        contexts = ["" if prompt.messages is not None else prompt.text for prompt in prompts]
        ids = tokens_after(self.tokenizer, contexts, bare, self.progress)
        return [
            self._close(row, None if at_stop else self._closing(prompt))
            for row, prompt, (_, at_stop) in zip(ids, prompts, stopped, strict=True)
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
        except Exception:  # a template may fail in any way; the prompt alone it took
            return response
        return whole.removeprefix(asked) if whole.startswith(asked) else response

    def _closing(self, prompt: Prompt) -> int | None:
        return self.closing if prompt.messages is None else self.closing_turn

    def _close(self, ids: list[int], closing: int | None) -> tuple[list[int], bool]:
        end = next((place for place, token in enumerate(ids) if token in self.eos_token_ids), None)
        if end is not None:
            ids = ids[: end + 1]
        elif closing is not None:
            ids = [*ids, closing]
        return ids[: self.max_new_tokens], len(ids) <= self.max_new_tokens
