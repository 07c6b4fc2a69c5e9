"""Check that a model gives the same log-probs in every way that a run computes them.

After loading, a trial on a few short rows compares each way with a plain forward pass of one row, without padding and
cache. It catches errors that raise no exception: recurrent layers that read padding, caches that the decode loop does
not fill, experts with a capacity, and masked language models. The first rollout is compared with
the initial policy for the same reason: nothing has been trained yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from apa_cli.algorithms import masked_mean, response_logits
from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError
from apa_cli.models.layout import Batch
from apa_cli.models.loading import first_line
from apa_cli.models.policy import Policy, base_of
from apa_cli.models.reference import Reference
from apa_cli.models.value import SeparateValue, Value
from apa_cli.rollouts.backends.cached import DecodingBatch, DynamicBatch
from apa_cli.rollouts.backends.static import Kept, padded_batch
from apa_cli.rollouts.trajectory import Trajectory

PROMPTS, RESPONSES = (7, 3, 3, 5), (5, 5, 4, 2)  # tokens of each row; rows 1 and 2 share a prompt
SHARED_ROWS = (0, 1, 1, 2)  # of these in the packed layout
B, P, T = len(PROMPTS), max(PROMPTS), max(RESPONSES)
STAY = (0, 3)  # rows that remain after the third token
# Mean |difference|, in nats for log-probs, relative for hidden states. Measured on a CPU with tiny models of 157
# architectures: equivalent computations differ by at most 0.0003 in fp32 and 0.07 in bf16, others by at least 0.09.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
SAME_SHAPES = 0.1  # of the tolerance, if operations and shapes are the same
PACKED = 0.05  # of the effect of other prompts, the most that the packed layout may change
FIRST_ROLLOUT = {"fp32": 1e-3, "bf16": 0.2}  # mean |log π_rollout − log π_ref| per token, nats


@torch.no_grad()
def check_agreement(
    policy: Policy,
    reference: Reference,
    value: Value | None,
    config: TrainConfig,
    *,
    key: str = "policy.path",
) -> bool:
    """Check the policy's passes and its decoding with the configured backend, the reference and the critic.

    Returns whether all of them give the same in the packed layout. key: names the policy in errors. Keeps the random
    state. Raises UserError.
    """
    device, backend = policy.runtime.device, config.generation.backend
    samples = not config.rollout.offline or config.evaluation.prompts > 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batch = trial_batch(policy)
        expected, tolerance = _check_passes(key, policy, batch)
        if samples and backend in DECODERS:
            _check_decoding(backend, policy, batch, expected, tolerance)
        if reference.frozen is not None:
            _check_passes("reference.path" if config.reference.path else "policy.path", reference.frozen, batch)
        if isinstance(value, SeparateValue):
            _check_critic("value.path" if config.value.path else key, value, policy, batch)
        passes: list[Callable[[Batch], Tensor]] = [partial(_logprobs, policy)]
        if reference.frozen is not None:
            passes.append(partial(_logprobs, reference.frozen))
        if isinstance(value, SeparateValue):
            passes.append(value.hidden_states)
        return all(_packed_agrees(run, batch, tolerance) for run in passes)


def check_first_rollout(
    sampled: Trajectory,
    reference: Tensor | None,
    policy: Policy,
    config: TrainConfig,
    note: Callable[[str], None],
) -> None:
    """Raise UserError if the sampler of an untrained policy has other log-probs (B, T) than the `reference`.

    With reference.path, which may be another model, the difference is only noted.
    """
    if sampled.rollout_logprobs is None or reference is None:
        return
    gap = masked_mean((sampled.rollout_logprobs - reference).abs(), sampled.response_mask).item()
    if not gap > FIRST_ROLLOUT[precision_of(policy)]:
        return
    if config.reference.path is not None:
        note(f"before training, log-probs of the policy and of reference.path differ by {gap:.2g} nats a token")
        return
    backend = config.generation.backend
    raise UserError(
        "generation.backend",
        f"before training, the log-probs that {backend} samples with are {gap:.2g} nats a token off the reference's",
        "use precision=fp32, or another model" if backend == "hf" else "use generation.backend=hf",
    )


def trial_batch(policy: Policy) -> Batch:
    """Rows of different lengths with ordinary tokens from the whole vocabulary, padded as in training."""
    device, tokenizer, base = policy.runtime.device, policy.tokenizer, base_of(policy.model)
    known = min(policy.known_ids, base.config.get_text_config().vocab_size)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *policy.eos_token_ids, policy.pad_token_id}
    spread = (int(known * (0.618034 * i % 1)) for i in islice(count(1), 10 * B * (P + T)))
    ordinary = [i for i in spread if i not in special] or [known - 1]
    ids = torch.tensor([ordinary[i % len(ordinary)] for i in range(B * (P + T))], device=device).view(B, P + T)
    ids[2, :P] = ids[1, :P]
    prompt_mask = torch.arange(-P, 0, device=device) >= -torch.tensor(PROMPTS, device=device)[:, None]
    response_mask = torch.arange(T, device=device) < torch.tensor(RESPONSES, device=device)[:, None]
    return Batch(torch.where(prompt_mask, ids[:, :P], policy.pad_token_id), prompt_mask, ids[:, P:], response_mask)


def _each_alone(key: str, policy: Policy, model: Any, output: str, batch: Batch, tolerance: float) -> Tensor:
    """The model's `output` for each unpadded row at the positions that predict response tokens: (B, T, ·) float32.

    Raises UserError if that fails, or if the output at a position changes with the tokens after it.
    """
    family = type(base_of(model)).__name__
    rows = [torch.cat([ids[mask], response]) for ids, mask, response in zip(*batch[:3], strict=True)]
    other = rows[0].clone()
    other[-1] = rows[1][-1]

    def forward(ids: Tensor) -> Tensor:
        with policy.runtime.autocast():
            found: Tensor = model(input_ids=ids[None], use_cache=False)[output]
        return found.float()

    try:
        outputs = [forward(row) for row in rows]
        before, changed = outputs[0][:, :-1], forward(other)[:, :-1]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # architectures fail in different ways
        problem = f"{family} does not run on token ids ({type(error).__name__}: {first_line(error)})"
        raise UserError(key, problem, "give a causal language model") from error
    if before.isnan().any():
        raise UserError(key, f"{family} gives NaN for ordinary tokens", "use precision=fp32, or another model")
    if not mean_gap(changed, before) <= tolerance * size(before):
        problem = f"{family} reads the tokens that follow, as a masked language model does"
        raise UserError(key, problem, "give a causal language model")
    return torch.cat([response_logits(found, T) for found in outputs])


def _check_passes(key: str, policy: Policy, batch: Batch) -> tuple[Tensor, float]:
    """Compare the training pass with each row alone. Returns the rows' log-probs (B, T, V) and the tolerance."""
    precision = precision_of(policy)
    logits = _each_alone(key, policy, policy.model, "logits", batch, SAME_SHAPES * TOLERANCE[precision])
    # large logits, as GPT-2 has, have larger rounding errors
    step = torch.finfo(torch.bfloat16 if precision == "bf16" else torch.float32).eps
    tolerance = TOLERANCE[precision] + step / 2 * size(logits)
    expected = logits.log_softmax(-1)
    of_tokens = expected.gather(-1, batch.response_ids[..., None]).squeeze(-1)  # (B, T)
    gap = mean_gap(_logprobs(policy, batch), of_tokens, batch.response_mask)
    if not gap <= tolerance:
        raise _depends(key, policy.model, f"log-probs by {gap:.2g} nats a token")
    return expected, tolerance


def _check_critic(key: str, value: SeparateValue, policy: Policy, batch: Batch) -> None:
    """Compare the hidden states of the critic's trunk with each row alone, as a new head gives 0 for any."""
    tolerance = TOLERANCE[precision_of(policy)]
    expected = _each_alone(key, policy, value.trunk, "last_hidden_state", batch, SAME_SHAPES * tolerance)  # (B, T, H)
    gap = mean_gap(value.hidden_states(batch), expected, batch.response_mask) / size(expected)
    if not gap <= tolerance:
        raise _depends(key, value.trunk, f"hidden states by {gap:.0%}")


def _packed_agrees(run: Callable[[Batch], Tensor], batch: Batch, tolerance: float) -> bool:
    """Whether log-probs or hidden states are the same in the packed layout, for responses of which two share a prompt.

    The difference must also be small beside what other prompts would change, as a model may barely read its prompts.
    """
    expected = run(batch)
    rows = torch.tensor(SHARED_ROWS, device=batch.response_ids.device)
    try:
        gap = mean_gap(run(batch._replace(rows=rows)), expected, batch.response_mask)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # architectures fail in different ways
        return False
    others = batch._replace(prompt_ids=batch.prompt_ids.roll(1, 0), prompt_mask=batch.prompt_mask.roll(1, 0))
    read = mean_gap(run(others), expected, batch.response_mask)
    return gap <= min(tolerance * max(1.0, size(expected)), PACKED * read)


def _logprobs(policy: Policy, batch: Batch) -> Tensor:
    return policy.logprobs(batch, temperature=1.0)[0]


def _depends(key: str, model: Any, gap: str) -> UserError:
    problem = f"outputs of {type(base_of(model)).__name__} depend on padding or on the other rows of a batch: {gap}"
    return UserError(key, problem, "choose a model that masks padding and computes each row by itself")


def _check_decoding(backend: str, policy: Policy, batch: Batch, expected: Tensor, tolerance: float) -> None:
    """Check prefill and steps on the backend's cache."""
    prompt_ids, prompt_mask, ids, _, _ = batch
    rows, stay = (torch.tensor(which, device=ids.device) for which in (range(B), STAY))
    gap = 0.0
    try:
        with policy.runtime.autocast():
            decoding = DECODERS[backend](policy, prompt_ids, prompt_mask)
            logits = decoding.prefill()
            for t in range(T):
                gap += mean_gap(logits.float().log_softmax(-1), expected[rows, t]) / T
                if t == 2 and decoding.keep(stay):
                    rows = stay
                if t < T - 1:
                    logits = decoding.step(ids[rows, t])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # architectures fail in different ways
        problem = f"{type(error).__name__} ({first_line(error)})"
    else:
        problem = f"log-probs are {gap:.2g} nats off those of a plain forward"
        if gap <= tolerance:
            return
    problem = f"{backend} does not sample from {type(base_of(policy.model)).__name__}: {problem}"
    other = "hf" if backend == "static" else "static"
    raise UserError("generation.backend", problem, f"try generation.backend={other}, or choose another model")


def _dynamic(policy: Policy, ids: Tensor, mask: Tensor) -> DecodingBatch:
    return DynamicBatch(policy, torch.arange(B, device=ids.device), ids, mask.cpu(), T)


def _static(policy: Policy, ids: Tensor, mask: Tensor) -> DecodingBatch:
    model = base_of(policy.model)
    return padded_batch(policy, ids, mask, T, Kept(model, model))


DECODERS: dict[str, Callable[[Policy, Tensor, Tensor], DecodingBatch]] = {"hf": _dynamic, "static": _static}


def size(outputs: Tensor) -> float:
    """Mean magnitude of the finite outputs."""
    return outputs[outputs.isfinite()].abs().mean().item()


def mean_gap(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Mean |a − b|, of (B, T, ...) where `mask` (B, T) is True. Equal infinities differ by 0."""
    difference = torch.where(a == b, 0.0, (a - b).abs().float())
    return (difference if mask is None else difference[mask]).mean().item()


def precision_of(policy: Policy) -> str:
    """The precision of the arithmetic, which half-precision weights lower too."""
    half = policy.runtime.bf16 or any(p.dtype in (torch.bfloat16, torch.float16) for p in policy.model.parameters())
    return "bf16" if half else "fp32"
