"""A stand-in for the vllm package with the call signatures that are used of it, sampling with transformers.

It checks the order of things as vLLM demands it: weights are garbage until they are loaded and after sleep(level=2),
nothing is generated without weights and cache. Unknown arguments fail.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True
    include_stop_str_in_output: bool = False


@dataclass
class Model:
    inner: Any
    loaded: set[str] = field(default_factory=set)

    def load_weights(self, weights):
        parameters = dict(self.inner.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                parameters[name].copy_(tensor)  # KeyError for a name that the model has not
                self.loaded.add(name)


class LLM:
    made: list[LLM] = []  # noqa: RUF012

    def __init__(self, model, *, load_format="auto", skip_tokenizer_init=False, max_model_len=None, **settings):
        known = {"generation_config", "dtype", "gpu_memory_utilization", "enable_sleep_mode", "logprobs_mode", "seed"}
        assert settings.keys() <= known
        torch.manual_seed(settings["seed"])  # as vLLM does, for the whole process
        assert load_format == "dummy"
        self.model = Model(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).eval())
        self.tokenizer = None if skip_tokenizer_init else AutoTokenizer.from_pretrained(model)
        self.max_model_len, self.sleeps = max_model_len, settings.get("enable_sleep_mode", False)
        self.processed = settings.get("logprobs_mode", "raw_logprobs")
        self.awake = {"weights", "kv_cache"}
        self.stale = True  # the prefix cache was made with other weights
        LLM.made.append(self)

    def sleep(self, level=1):
        assert self.sleeps
        self.awake = set()
        if level == 2:
            self._garble()

    def wake_up(self, tags=None):
        self.awake |= set(tags or ("weights", "kv_cache"))

    def reset_prefix_cache(self):
        self.stale = False
        return True

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        assert "weights" in self.awake
        self.stale = True
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self.model))
        return [method(worker, *args, **(kwargs or {}))]

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        assert self.awake == {"weights", "kv_cache"}
        assert not self.stale
        assert self.model.loaded == {name for name, _ in self.model.inner.named_parameters()}
        rows = [
            SimpleNamespace(
                ids=list(prompt["prompt_token_ids"]),
                params=params,
                new=[],
                logprobs=[],
                finish_reason=None,
                random=torch.Generator().manual_seed(params.seed),
            )
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]
        while running := [row for row in rows if row.finish_reason is None]:
            alike = defaultdict(list)
            for row in running:
                alike[len(row.ids)].append(row)
            for rows_alike in alike.values():
                self._step(rows_alike)
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(token_ids=tuple(row.new), logprobs=row.logprobs, finish_reason=row.finish_reason)
                ]
            )
            for row in rows
        ]

    @torch.no_grad()
    def _step(self, rows):
        assert len(rows[0].ids) < self.max_model_len
        logits = self.model.inner(torch.tensor([row.ids for row in rows])).logits[:, -1].float()
        for row, scores in zip(rows, logits, strict=True):
            params = row.params
            raw = scores.log_softmax(-1)
            if len(row.new) < params.min_tokens:
                scores[params.stop_token_ids] = -torch.inf
            if params.temperature > 0:
                scores = scores / params.temperature
            if params.top_k > 0:
                scores = torch.where(scores < scores.topk(params.top_k).values[-1], -torch.inf, scores)
            if params.top_p < 1:
                ordered, order = scores.softmax(-1).sort(descending=True)
                scores[order[ordered.cumsum(-1) - ordered > params.top_p]] = -torch.inf
            processed = scores.log_softmax(-1)
            if params.temperature > 0:
                token = int(torch.multinomial(processed.exp(), 1, generator=row.random))
            else:
                token = int(scores.argmax())
            kept = processed if self.processed == "processed_logprobs" else raw
            row.ids.append(token)
            row.new.append(token)
            row.logprobs.append({token: SimpleNamespace(logprob=float(kept[token]))})
            self._end(row, token)

    def _end(self, row, token):
        params = row.params
        if len(row.new) >= params.max_tokens:  # before the end of text, as in vLLM
            row.finish_reason = "length"
        elif token in params.stop_token_ids:
            row.finish_reason = "stop"
        elif params.stop and len(row.new) >= params.min_tokens:
            assert params.detokenize
            if any(stop in self.tokenizer.decode(row.new) for stop in params.stop):
                row.finish_reason = "stop"

    def _garble(self):
        self.model.loaded = set()
        with torch.no_grad():
            for parameter in self.model.inner.parameters():
                parameter.fill_(torch.nan)
