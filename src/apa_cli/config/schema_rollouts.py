"""The keys of where prompts and responses come from: data, generation and rollout. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from apa_cli.config.fields import choice, number, plain, required


@dataclass(kw_only=True)
class DataConfig:
    path: str = required(
        "prompts: .jsonl .json .csv .tsv .parquet .txt (also .gz), a pattern or a folder of such files, a "
        "save_to_disk folder, a Hub id, or builtin:…"
    )
    max_rows: Optional[int] = number(
        200_000, "rows read from a larger data set, chosen by the seed; null = all, in memory", minimum=1
    )
    revision: Optional[str] = plain(
        None, "Hub branch, tag or commit of data.path, and of data.eval_path if it is the same data set"
    )
    subset: Optional[str] = plain(None, "configuration name of a Hub data set")
    split: str = plain("train", "split of a Hub data set or of a save_to_disk folder")
    prompt_column: str = plain(
        "prompt",
        "column with the prompt (format text) or the messages (format chat, which also finds messages and "
        "conversations)",
    )
    format: str = choice(
        "auto",
        "text, chat (messages through the policy's template), hh (the prompt is everything up to the last Assistant:) "
        "or hh_chat (its turns as messages); auto = found from the rows",
        choices=("auto", "text", "chat", "hh", "hh_chat"),
    )
    prompt_template: Optional[str] = plain(
        None,
        "text: template of the text that is read, with {prompt} as the placeholder, such as an answer cue; null = the "
        "prompt alone",
    )
    system_prompt: Optional[str] = plain(None, "chat: system message for dialogues without one; null = none")
    template_arguments: dict[str, Any] = plain(
        {}, "chat: extra arguments for the policy's template, such as {enable_thinking: false}; null = not given"
    )
    response_column: Optional[str] = plain(
        None,
        "offline: column with the response; null = chosen and rejected if both exist, otherwise response, otherwise "
        "the answer that ends a row's messages",
    )
    score_column: Optional[str] = plain(
        None,
        "offline: column with the response's score (for pairs: NAME_chosen, NAME_rejected); null = scores come from "
        "the reward",
    )
    max_prompt_tokens: int = number(512, "longest prompt, in tokens", minimum=1)
    overlong: str = choice(
        "cut",
        "what to do with longer prompts: cut them on the left (chat: leave out whole turns, the oldest first), or "
        "drop them",
        choices=("cut", "drop"),
    )
    empty: str = choice(
        "stop",
        "what to do with rows whose prompt or logged response is null or empty: stop, or drop and count them",
        choices=("stop", "drop"),
    )
    eval_path: Optional[str] = plain(
        None,
        "held-out prompts, of which the seed draws evaluation.prompts rows; null = set aside as many rows of data.path",
    )
    eval_split: str = plain("test", "split of data.eval_path")

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `template_arguments` that are given."""
        return {name: value for name, value in self.template_arguments.items() if value is not None}


@dataclass(kw_only=True)
class GenerationConfig:
    max_new_tokens: int = number(128, "longest response, in tokens", minimum=1)
    min_new_tokens: int = number(0, "number of tokens before which a response cannot end", minimum=0)
    temperature: float = number(1.0, "sampling temperature, also applied to log-probs", above=0)
    top_k: int = number(0, "sample among the k most likely tokens; 0 = all", minimum=0)
    top_p: float = number(
        1.0, "sample among the most likely tokens with this total probability; 1 = all", above=0, maximum=1
    )
    stop: list[str] = plain([], "strings that end a response and count as part of it")
    stop_tokens: list[str] = plain([], "tokens that end a response, in addition to EOS and the template's end of turn")
    backend: str = choice(
        "hf",
        "how responses are sampled: hf = growing cache; static = fixed-size cache, CUDA graphs on a GPU; vllm = vLLM "
        "in the same process",
        choices=("hf", "static", "vllm"),
    )
    rows: Optional[int] = number(
        None,
        "hf: responses decoded at a time, which bounds the KV cache and does not change the tokens; null = 64 on a "
        "CPU, all on a GPU",
        minimum=1,
    )
    gpu_memory_fraction: float = number(
        0.4, "vllm: fraction of the GPU's memory that vLLM may use while it samples", above=0, below=1
    )


@dataclass(kw_only=True)
class RolloutConfig:
    source: str = choice(
        "online",
        "online = sampled from the policy; offline = logged responses in data.path (response, or chosen and rejected)",
        choices=("online", "offline"),
    )
    reference_cache: Optional[str] = plain(
        None,
        "folder that keeps reference log-probs (offline) and the initial policy's scores (advantage.name=reference); "
        "null = apa-cli in the user's cache folder",
    )
    batch_size: int = number(64, "responses per iteration", minimum=1)
    responses_per_prompt: int = number(1, "responses per prompt; must divide batch_size", minimum=1)
    dynamic_sampling: int = number(
        0,
        "group: how many further prompts an iteration may draw in place of those whose responses all score alike",
        minimum=0,
    )

    @property
    def prompts(self) -> int:
        """Prompts an iteration."""
        return self.batch_size // self.responses_per_prompt

    @property
    def offline(self) -> bool:
        return self.source == "offline"
