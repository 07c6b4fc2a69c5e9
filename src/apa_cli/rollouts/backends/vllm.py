"""`vllm`: a vLLM engine in this process, on the GPU that also trains. Not run here: it needs a GPU and the vllm extra.

The engine is made once, from the policy's configuration alone. Each rollout wakes it, gives it the policy's weights of
the moment (with an adapter: merged as they are handed over, the policy's own stay as they are), samples, and puts it
to sleep, which frees its weights and its cache for the update. Written against vLLM 0.11's offline API: `LLM`,
`SamplingParams`, `collective_rpc`, `sleep(level=2)`, `wake_up(tags)`, `reset_prefix_cache`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from apa_cli.config import schema
from apa_cli.errors import UserError
from apa_cli.models.policy import Policy
from apa_cli.rollouts.backends.cached import base_model
from apa_cli.rollouts.backends.engine import Response, prompt_lists, random_states_kept, request_seed, to_rollout
from apa_cli.rollouts.trajectory import Trajectory

SHORTEST_ROOM = 4096  # tokens; an engine has room for longer sequences where they come, up to the model's own

_ENGINES: WeakKeyDictionary[Policy, tuple[int, Any]] = WeakKeyDictionary()  # room and engine


def generate(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, config: schema.GenerationConfig, *, greedy: bool
) -> Trajectory:
    """`prompt_ids` and `prompt_mask` (B, P) as the prompts come, on the CPU."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # colocated: weights are handed over, not sent
    from vllm import SamplingParams

    prompts = prompt_lists(prompt_ids, prompt_mask)
    seeds = [request_seed() for _ in prompts]
    with random_states_kept(policy.runtime.device):
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
                    ignore_eos=True,  # the ids above are all that ends a response
                    logprobs=0,  # of the token drawn, and no other
                    seed=seed,
                    detokenize=bool(config.stop),
                )
                for seed in seeds
            ],
            use_tqdm=False,
        )
        engine.sleep(level=2)
    ends = set(policy.eos_token_ids)
    responses = [_response(output.outputs[0], ends) for output in outputs]
    return to_rollout(policy, prompt_ids, prompt_mask, responses, config, greedy=greedy)


def merged_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights under the base model's own names, one at a time, the adapter in use added to its layers."""
    model = base_model(policy)
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    dora = any(any(module.use_dora.values()) for module in adapted.values())
    for name, parameter in model.named_parameters():
        if dora or ".modules_to_save." in name:
            raise UserError(
                "policy.adapter",
                "it holds whole modules or DoRA, which generation.backend=vllm does not hand over",
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
    engine.reset_prefix_cache()  # what it holds was made with other weights
    return engine


def _new_engine(policy: Policy, room: int, config: schema.GenerationConfig) -> Any:
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        base_model(policy).config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        return LLM(
            model=folder,
            load_format="dummy",  # the weights are handed over
            skip_tokenizer_init=not config.stop,
            generation_config="vllm",  # nothing of the model's own sampling defaults
            dtype="bfloat16" if policy.runtime.bf16 else "float32",
            max_model_len=room,
            gpu_memory_utilization=config.gpu_memory_fraction,
            enable_sleep_mode=True,
            logprobs_mode="processed_logprobs",  # after temperature
            seed=0,
        )


def _load_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    worker.model_runner.model.load_weights(weights)


def _response(output: Any, ends: set[int]) -> Response:
    ids = list(output.token_ids)
    return Response(
        ids=ids,
        logprobs=[step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)],
        ended=ids[-1] in ends or output.finish_reason == "stop",
    )
