"""Check that a model gives the same log-probs in every way that a run computes them.

After loading, a trial on a few short rows compares each way with a plain forward pass of one row, without padding and
cache. It catches errors that raise no exception: recurrent layers that read padding, caches that the decode loop does
not fill, experts with a capacity, masked language models, and dropout that stays on. The first rollout is compared with
the initial policy for the same reason: nothing has been trained yet.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from apa_cli.algorithms import masked_mean
from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError
from apa_cli.models.loading import NOISE, first_line
from apa_cli.models.policy import Policy, base_of
from apa_cli.models.reference import Reference
from apa_cli.models.value import SeparateValue, SharedValue, Value
from apa_cli.rollouts.backends.cached import DecodingBatch, DynamicBatch
from apa_cli.rollouts.backends.static import Kept, padded_batch
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.rollouts.trial import B, Batch, T, each_alone, mean_gap, precision_of, size, trial_batch

STAY = (0, 3)  # rows that remain after the third token
# Mean |difference|, in nats for log-probs, relative for hidden states. Measured on a CPU with tiny models of 157
# architectures: equivalent computations differ by at most 0.0003 in fp32 and 0.07 in bf16, others by at least 0.09.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
SAME_SHAPES = 0.1  # of the tolerance, if operations and shapes are the same
FIRST_ROLLOUT = {"fp32": 1e-3, "bf16": 0.2}  # mean |log π_rollout − log π_ref| per token, nats


@torch.no_grad()
def check_agreement(
    policy: Policy,
    reference: Reference,
    value: Value | None,
    config: TrainConfig,
    *,
    key: str = "policy.path",
    training: bool = True,
) -> None:
    """Check the policy's passes and its decoding with the configured backend, the reference and the critic.

    key: names the policy in errors. training: also check training mode. Keeps the random state. Raises UserError.
    """
    device = policy.runtime.device
    samples = not config.rollout.offline or config.evaluation.prompts > 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batch = trial_batch(policy)
        expected, tolerance = _check_passes(key, policy, batch)
        if samples and config.generation.backend in DECODERS:
            _check_decoding(key, config.generation.backend, policy, batch, expected, tolerance)
        if reference.frozen is not None:
            _check_passes("reference.path" if config.reference.path else "policy.path", reference.frozen, batch)
        if isinstance(value, SeparateValue):
            _check_critic("value.path" if config.value.path else key, value, policy, batch)
        if training:
            _check_training_mode(key, policy, value, batch, dropout=config.policy.adapter.dropout > 0)


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


def _check_passes(key: str, policy: Policy, batch: Batch) -> tuple[Tensor, float]:
    """Compare the training pass with each row alone. Returns the rows' log-probs (B, T, V) and the tolerance."""
    family, mask = type(base_of(policy.model)).__name__, batch[3]

    def forward(ids: Tensor) -> Tensor:
        with policy.runtime.autocast():
            logits: Tensor = policy.model(input_ids=ids, use_cache=False).logits
        return logits

    precision = precision_of(policy)
    logits = each_alone(key, family, forward, batch, SAME_SHAPES * TOLERANCE[precision])
    # large logits, as GPT-2 has, have larger rounding errors
    step = torch.finfo(torch.bfloat16 if precision == "bf16" else torch.float32).eps
    tolerance = TOLERANCE[precision] + step / 2 * size(logits)
    expected = logits.log_softmax(-1)
    of_tokens = expected.gather(-1, batch[2][..., None]).squeeze(-1)  # (B, T)
    gap = mean_gap(_logprobs(policy, batch), of_tokens, mask)
    if gap <= tolerance:
        return expected, tolerance
    one_by_one = [_logprobs(policy, tuple(part[row : row + 1] for part in batch)) for row in range(B)]  # type: ignore[arg-type]
    if mean_gap(torch.cat(one_by_one), of_tokens, mask) <= tolerance:
        problem = f"log-probs of {family} depend on the other rows of a batch: {gap:.2g} nats a token"
        raise UserError(key, problem, "choose a model that computes each row by itself")
    problem = f"log-probs of {family} depend on the padding to their left: {gap:.2g} nats a token"
    raise UserError(key, problem, "choose a model that masks padding, as models of attention layers do")


def _check_decoding(key: str, backend: str, policy: Policy, batch: Batch, expected: Tensor, tolerance: float) -> None:
    """Check prefill and steps on the backend's cache. Suggests the other backend only if that works."""
    problem = _decoding_problem(backend, policy, batch, expected, tolerance)
    if problem is None:
        return
    family, other = type(base_of(policy.model)).__name__, "hf" if backend == "static" else "static"
    if _decoding_problem(other, policy, batch, expected, tolerance) is None:
        problem = f"{backend} does not sample from {family}: {problem}"
        raise UserError("generation.backend", problem, f"use generation.backend={other}")
    problem = f"hf and static do not sample from {family}: with {backend}, {problem}"
    raise UserError(key, problem, "choose another model")


def _decoding_problem(backend: str, policy: Policy, batch: Batch, expected: Tensor, tolerance: float) -> str | None:
    prompt_ids, prompt_mask, ids, _ = batch
    rows, stay = (torch.tensor(which, device=ids.device) for which in (range(B), STAY))
    gaps = []
    try:
        with policy.runtime.autocast():
            decoding = DECODERS[backend](policy, prompt_ids, prompt_mask)
            logits = decoding.prefill()
            for t in range(T):
                gaps.append(mean_gap(logits.float().log_softmax(-1), expected[rows, t]))
                if t == 2 and decoding.keep(stay):
                    rows = stay
                if t < T - 1:
                    logits = decoding.step(ids[rows, t])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # architectures fail in different ways
        return f"{type(error).__name__} ({first_line(error)})"
    gap = sum(gaps) / T
    return None if gap <= tolerance else f"log-probs are {gap:.2g} nats off those of a plain forward"


def _dynamic(policy: Policy, ids: Tensor, mask: Tensor) -> DecodingBatch:
    return DynamicBatch(policy, torch.arange(B, device=ids.device), ids, mask.cpu(), T)


def _static(policy: Policy, ids: Tensor, mask: Tensor) -> DecodingBatch:
    model = base_of(policy.model)
    return padded_batch(policy, ids, mask, T, Kept(model, model))


DECODERS: dict[str, Callable[[Policy, Tensor, Tensor], DecodingBatch]] = {"hf": _dynamic, "static": _static}


def _check_critic(key: str, value: SeparateValue, policy: Policy, batch: Batch) -> None:
    """Compare the hidden states of the critic's trunk with each row alone, as a new head gives 0 for any."""
    family, tolerance = type(value.trunk).__name__, TOLERANCE[precision_of(policy)]

    def forward(ids: Tensor) -> Tensor:
        with policy.runtime.autocast():
            hidden: Tensor = value.trunk(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    expected = each_alone(key, family, forward, batch, SAME_SHAPES * tolerance)  # (B, T, H)
    gap = mean_gap(value.hidden_states(*batch), expected, batch[3]) / size(expected)
    if not gap <= tolerance:
        problem = f"values of {family} depend on padding or on the other rows of a batch: hidden states by {gap:.0%}"
        raise UserError(key, problem, "choose a critic that masks padding and computes each row by itself")


def _check_training_mode(key: str, policy: Policy, value: Value | None, batch: Batch, *, dropout: bool) -> None:
    """Compare the update's passes in training and evaluation mode. `dropout`: allow the adapter's."""

    def passes() -> list[Tensor]:
        states = [] if value is None or isinstance(value, SharedValue) else [value.hidden_states(*batch).float()]
        return [_logprobs(policy, batch), *(hidden / hidden.abs().mean() for hidden in states)]

    expected = passes()
    with policy.training():
        if value is not None:
            value.train()
        for name, module in policy.model.named_modules():
            if dropout and ".lora_dropout." in name:
                module.eval()
        found = passes()
        owners = [policy.model, *([] if value is None else [value])]
        noisy = [name for owner in owners for name, module in owner.named_modules() if _is_noisy(module)]
        if value is not None:
            value.eval()
    gap = max(mean_gap(a, b, batch[3]) for a, b in zip(found, expected, strict=True))
    if not gap <= SAME_SHAPES * TOLERANCE[precision_of(policy)]:
        names = f"{', '.join(noisy[:3]) or 'no module known as dropout'}{', …' if noisy[3:] else ''}"
        problem = f"log-probs or values in training and evaluation mode differ by {gap:.2g}, due to noise in {names}"
        raise UserError(key, problem, "set the dropout to 0 in the config.json of the model or adapter")


def _is_noisy(module: nn.Module) -> bool:
    """Whether a module in training mode is a dropout layer, or has a dropout attribute, above 0."""
    numbers = [value for name, value in vars(module).items() if any(part in name for part in NOISE)]
    if isinstance(module, nn.modules.dropout._DropoutNd):
        numbers.append(module.p)
    return module.training and any(isinstance(number, float) and number > 0 for number in numbers)


def _logprobs(policy: Policy, batch: Batch) -> Tensor:
    return policy.logprobs(*batch, temperature=1.0)[0]
