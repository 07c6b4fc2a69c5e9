"""The keys of where prompts and responses come from: data, generation and rollout. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from apa_cli.config.fields import choice, items, mapping, number, required, text


@dataclass(kw_only=True)
class DataConfig:
    path: str = required(
        "prompts: .jsonl .json .csv .tsv .parquet .txt (also .gz), a pattern or a folder of such files, a folder of "
        "save_to_disk, a Hub id, or builtin:…"
    )
    max_rows: Optional[int] = number(
        200_000, "rows that are read of a larger data set, chosen by the seed; null = all, in memory", minimum=1
    )
    revision: Optional[str] = text(
        None, "Hub branch, tag or commit of data.path, and of data.eval_path where it is the same data set"
    )
    subset: Optional[str] = text(None, "Hub data set's configuration name")
    split: str = text("train", "split of a Hub data set, or of a folder of save_to_disk")
    prompt_column: str = text(
        "prompt",
        "column with the prompt (format text) or the messages (format chat; messages and conversations are found too)",
    )
    format: str = choice(
        "auto",
        "text, chat (messages through the policy's template), hh (prompt = up to the last Assistant:) or hh_chat "
        "(its turns as messages); auto looks at the rows",
        choices=("auto", "text", "chat", "hh", "hh_chat"),
    )
    prompt_template: Optional[str] = text(
        None,
        "text: what is read of each prompt, {prompt} where it stands, such as an answer cue; null = the prompt alone",
    )
    system_prompt: Optional[str] = text(None, "chat: system message of dialogues that have none; null = none")
    template_arguments: dict[str, Any] = mapping(
        {}, "chat: further arguments of the policy's template, such as {enable_thinking: false}; null = not given"
    )
    response_column: Optional[str] = text(
        None,
        "offline: column with the response; null = chosen and rejected where there are both, otherwise response, "
        "otherwise the answer that a row's messages end with",
    )
    score_column: Optional[str] = text(
        None, "offline: column with the response's score (of pairs: NAME_chosen, NAME_rejected); null = the reward's"
    )
    max_prompt_tokens: int = number(512, "longest prompt, tokens", minimum=1)
    overlong: str = choice(
        "cut",
        "longer prompts are cut on the left (chat: the oldest turns are left out whole), or dropped",
        choices=("cut", "drop"),
    )
    empty: str = choice(
        "stop",
        "rows whose prompt, or logged response, is null or empty: stop there, or drop and count them",
        choices=("stop", "drop"),
    )
    eval_path: Optional[str] = text(
        None,
        "held-out prompts, evaluation.prompts rows of them drawn by the seed; null = as many set aside from data.path",
    )
    eval_split: str = text("test", "the same of data.eval_path")

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `template_arguments` that are given."""
        return {name: value for name, value in self.template_arguments.items() if value is not None}


@dataclass(kw_only=True)
class GenerationConfig:
    max_new_tokens: int = number(128, "longest response, tokens", minimum=1)
    min_new_tokens: int = number(0, "no end of text before this many tokens", minimum=0)
    temperature: float = number(1.0, "sampling temperature; log-probs are taken at the same one", above=0)
    top_k: int = number(0, "sample among the k likeliest tokens; 0 = all", minimum=0)
    top_p: float = number(1.0, "sample within this probability mass; 1 = all", above=0, maximum=1)
    stop: list[str] = items([], "strings that end a response; the response counts up to and including them")
    stop_tokens: list[str] = items([], "tokens that end a response, besides EOS and the template's end of turn")
    backend: str = choice(
        "hf",
        "what runs the policy to sample: hf = a growing cache; static = a cache of fixed size, CUDA graphs on a GPU; "
        "vllm = vLLM in this process",
        choices=("hf", "static", "vllm"),
    )
    rows: Optional[int] = number(
        None,
        "hf: responses decoded at once, which bounds the KV cache; same tokens; null = 64 on a CPU, all on a GPU",
        minimum=1,
    )
    gpu_memory_fraction: float = number(
        0.4, "vllm: share of the GPU that vLLM may fill while it samples", above=0, below=1
    )


@dataclass(kw_only=True)
class RolloutConfig:
    source: str = choice(
        "online",
        "responses sampled from the policy, or offline: logged ones, of data.path (response, or chosen and rejected)",
        choices=("online", "offline"),
    )
    reference_cache: Optional[str] = text(
        None, "offline: folder that keeps reference log-probs; null = apa-cli in the user's cache folder"
    )
    batch_size: int = number(64, "responses an iteration", minimum=1)
    responses_per_prompt: int = number(1, "responses to each prompt; batch_size is a multiple of it", minimum=1)

    @property
    def prompts(self) -> int:
        """Prompts an iteration."""
        return self.batch_size // self.responses_per_prompt

    @property
    def offline(self) -> bool:
        return self.source == "offline"
