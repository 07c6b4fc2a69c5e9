"""`vllm`: a vLLM engine in this process, on the GPU that also trains. Not run yet: it needs a GPU and the vllm extra.

The engine is created once, from the policy's configuration. Each rollout wakes it, loads the policy's current weights
(an adapter is merged on the way, the policy stays as it is), samples, and puts it to sleep, which frees its weights and
cache for the update. Written for the offline API of vLLM 0.11: `LLM`, `SamplingParams`, `collective_rpc`,
`sleep(level=2)`, `wake_up(tags)`, `reset_prefix_cache`.

vLLM reports no entropy, so a forward pass of the policy computes it. The sampler's own log-probs are kept if they are
those of the full softmax; where it samples from less, they come from the same pass.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from apa_cli.algorithms import response_logprobs, token_entropy
from apa_cli.config import schema
from apa_cli.errors import UserError
from apa_cli.models.policy import Policy, base_of
from apa_cli.rollouts.trajectory import Trajectory

SHORTEST_ROOM = 4096  # tokens; longer sequences get a new engine, up to the model's own limit
PASS_TOKENS = 16_384  # padding included, in one forward pass
PASS_ROWS = 128  # rows of logits at a time

_ENGINES: WeakKeyDictionary[Policy, tuple[int, Any]] = WeakKeyDictionary()  # room and engine


def generate(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, config: schema.GenerationConfig, *, greedy: bool
) -> Trajectory:
    """`prompt_ids` and `prompt_mask` are (B, P) on the CPU."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process: weights are passed, not sent
    from vllm import SamplingParams

    prompts = [row[keep].tolist() for row, keep in zip(prompt_ids, prompt_mask, strict=True)]
    seeds = [int(torch.randint(2**31 - 1, ())) for _ in prompts]  # from the global random state
    with _random_states_kept(policy.runtime.device):
        engine = _awake_engine(policy, max(map(len, prompts)) + config.max_new_tokens, config)
        outputs = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [
                SamplingParams(
                    temperature=0.0 if greedy else config.temperature,
                    top_k=config.top_k or -1,
                    top_p=config.top_p,
                    min_tokens=config.min_new_tokens,
                    max_tokens=config.max_new_tokens,
                    stop=config.stop or None,
                    include_stop_str_in_output=True,
                    stop_token_ids=policy.eos_token_ids,
                    ignore_eos=True,  # only the ids above end a response
                    logprobs=0,  # of the sampled token only
                    seed=seed,
                    detokenize=bool(config.stop),
                )
                for seed in seeds
            ],
            use_tqdm=False,
        )
        engine.sleep(level=2)
    return _trajectory(policy, prompt_ids, prompt_mask, [o.outputs[0] for o in outputs], config, greedy=greedy)


def merged_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights by their names in the base model, one at a time, with the active adapter merged."""
    model = base_of(policy.model)
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    dora = any(any(module.use_dora.values()) for module in adapted.values())
    for name, parameter in model.named_parameters():
        if dora or ".modules_to_save." in name:
            raise UserError(
                "policy.adapter",
                "it holds whole modules or DoRA, which generation.backend=vllm does not support",
                "use generation.backend=hf",
            )
        layer = next((prefix for prefix in adapted if name.startswith(f"{prefix}.")), None)
        if layer is None:
            yield name, parameter.detach()
        elif name.startswith(f"{layer}.base_layer."):
            plain = f"{layer}.{name.removeprefix(f'{layer}.base_layer.')}"
            yield plain, _merged(adapted[layer], parameter.detach(), plain)


@torch.no_grad()
def _merged(layer: Any, weight: Tensor, name: str) -> Tensor:
    if not name.endswith(".weight"):
        return weight
    whole = weight.float()
    for adapter in () if layer.disable_adapters else layer.active_adapters:
        if adapter in {**layer.lora_A, **layer.lora_embedding_A}:
            whole = whole + layer.get_delta_weight(adapter).float()
    return whole.to(weight.dtype)


def _awake_engine(policy: Policy, longest: int, config: schema.GenerationConfig) -> Any:
    """The policy's engine with room for sequences of `longest` tokens, awake, holding the policy's weights."""
    room, engine = _ENGINES.get(policy, (0, None))
    if engine is not None and room >= longest:
        engine.wake_up(tags=["weights"])
        engine.collective_rpc(_load_weights, args=(merged_weights(policy),))
        engine.wake_up(tags=["kv_cache"])
    else:
        _ENGINES.pop(policy, None)
        room = max(longest, SHORTEST_ROOM) if policy.room is None else min(policy.room, max(longest, SHORTEST_ROOM))
        engine = _new_engine(policy, room, config)
        engine.collective_rpc(_load_weights, args=(merged_weights(policy),))
        _ENGINES[policy] = room, engine
    engine.reset_prefix_cache()  # cached with other weights
    return engine


def _new_engine(policy: Policy, room: int, config: schema.GenerationConfig) -> Any:
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        base_of(policy.model).config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        return LLM(
            model=folder,
            load_format="dummy",  # the weights follow
            skip_tokenizer_init=not config.stop,
            generation_config="vllm",  # not the model's own sampling defaults
            dtype="bfloat16" if policy.runtime.bf16 else "float32",
            max_model_len=room,
            gpu_memory_utilization=config.gpu_memory_fraction,
            enable_sleep_mode=True,
            logprobs_mode="processed_logprobs",  # after temperature
            seed=0,
        )


def _load_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    worker.model_runner.model.load_weights(weights)


@contextlib.contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    """vLLM seeds torch, Python and NumPy for the whole process."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _trajectory(
    policy: Policy,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    outputs: Sequence[Any],
    config: schema.GenerationConfig,
    *,
    greedy: bool,
) -> Trajectory:
    """vLLM's outputs, B of them, as a trajectory on the policy's device."""
    device, B, T = policy.runtime.device, len(outputs), max(len(output.token_ids) for output in outputs)
    ids, logprobs = torch.full((B, T), policy.pad_token_id), torch.zeros(B, T)
    mask = torch.arange(T) < torch.tensor([len(output.token_ids) for output in outputs])[:, None]
    for row, output in enumerate(outputs):
        chosen = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
        ids[row, mask[row]], logprobs[row, mask[row]] = torch.tensor(output.token_ids), torch.tensor(chosen)
    ended = [o.token_ids[-1] in policy.ends or o.finish_reason == "stop" for o in outputs]
    rollout = Trajectory(
        prompt_ids=prompt_ids.to(device),
        prompt_mask=prompt_mask.to(device),
        response_ids=ids.to(device),
        response_mask=mask.to(device),
        ended=torch.tensor(ended, device=device),
        rollout_logprobs=logprobs.to(device),
        entropy=torch.zeros(B, T, device=device),
    )
    plain_logprobs, entropy = _policy_pass(policy, rollout, config.temperature)
    whole_softmax = not (greedy or config.top_k or config.top_p < 1 or config.min_new_tokens)
    return replace(
        rollout, rollout_logprobs=rollout.rollout_logprobs if whole_softmax else plain_logprobs, entropy=entropy
    )


def _policy_pass(policy: Policy, rollout: Trajectory, temperature: float) -> tuple[Tensor, Tensor]:
    """log π and entropy of the counted tokens, (B, T) each, 0 elsewhere."""
    logprobs, entropy = (torch.zeros_like(rollout.response_mask, dtype=torch.float32) for _ in range(2))
    for rows in rollout.microbatches(PASS_TOKENS):
        part = rollout.select(rows)
        logits_of = policy.counted_logits(part.batch)
        counted_ids = part.response_ids[part.response_mask]  # (N,)
        found = []
        for start in range(0, len(counted_ids), PASS_ROWS):
            tokens = slice(start, start + PASS_ROWS)
            logits = logits_of(tokens)[None]  # (1, n, V)
            of_token = response_logprobs(logits, counted_ids[None, tokens], temperature=temperature)[0]
            found.append((of_token, token_entropy(logits, temperature=temperature)[0]))
        for whole, pieces in zip((logprobs, entropy), zip(*found, strict=True), strict=True):
            rectangle = torch.zeros_like(part.response_mask, dtype=torch.float32)
            rectangle[part.response_mask] = torch.cat(pieces).float()
            whole[rows, : rectangle.shape[1]] = rectangle
    return logprobs, entropy
