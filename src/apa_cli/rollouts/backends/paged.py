"""`paged`: transformers' continuous batching, which packs requests without padding into a paged cache.

It samples in a thread of its own and returns the log-probs of its draws. Its forward runs in the weights' own
precision, as autocast does not reach that thread. Needs a model on transformers' attention interface (not GPT-NeoX,
BLOOM or OPT as of transformers 5.24).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from apa_cli.config import schema
from apa_cli.errors import UserError
from apa_cli.models.policy import Policy
from apa_cli.rollouts.backends.cached import base_model
from apa_cli.rollouts.backends.engine import Response, prompt_lists, random_states_kept, request_seed, to_rollout
from apa_cli.rollouts.record import Rollout

PAGE = 32  # tokens
STEP_TOKENS = 2048  # tokens, of prompts or responses, in one forward


def generate(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, config: schema.GenerationConfig, *, greedy: bool
) -> Rollout:
    """`prompt_ids` and `prompt_mask` (B, P) as the prompts come, on the CPU."""
    prompts = prompt_lists(prompt_ids, prompt_mask)
    model, seed = base_model(policy), request_seed()
    sampling: dict[str, Any] = {}
    if not greedy:
        sampling = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    with random_states_kept(policy.runtime.device), _quiet():
        outputs = model.generate_batch(
            prompts,
            generation_config=GenerationConfig(
                max_new_tokens=config.max_new_tokens,
                do_sample=not greedy,
                pad_token_id=policy.pad_token_id,
                eos_token_id=policy.eos_token_ids or -1,
                **sampling,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                return_logprobs=True,
                seed=seed,
                page_size=PAGE,
                # room for every request at once, and no more: the rest of the memory is the update's
                num_blocks=sum(-(-(len(prompt) + config.max_new_tokens) // PAGE) + 1 for prompt in prompts),
                max_batch_tokens=STEP_TOKENS,
                allow_block_sharing=False,  # pages of earlier weights must never be found again
                auto_switch_to_flash=model.dtype != torch.float32,
            ),
        )
    found = list(outputs.values())
    failed = next((output.error for output in found if output.error is not None), None)
    if failed is not None or len(found) != len(prompts):
        raise UserError(
            "generation.backend",
            f"paged does not run {type(model).__name__}: {(failed or 'no answer').splitlines()[0][:200]}",
            "use generation.backend=hf, or static",
        )
    ends = set(policy.eos_token_ids)
    responses = [
        Response(ids=output.generated_tokens, logprobs=output.logprobs, ended=output.generated_tokens[-1] in ends)
        for output in found
    ]
    return to_rollout(policy, prompt_ids, prompt_mask, responses, config, greedy=greedy)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """An error comes back with its request; its traceback need not fill the terminal as well."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
