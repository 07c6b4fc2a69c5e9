"""What the GPU could do: measured copy bandwidth and bf16 matrix rate, and what an iteration asks of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmark.jobs import Contestant, Job, Shape, contestants
from benchmark.summary import GPU_TARGETS, Row, Verdict

BF16 = 2  # bytes


def layer_parameters(shape: Shape) -> int:
    """Weights of one layer's matrices."""
    projections = 3 if shape.family == "llama" else 2  # its feed-forward layer is gated
    return 4 * shape.hidden**2 + projections * shape.hidden * shape.intermediate


def decode_bytes(shape: Shape, prompt_lengths: Sequence[int], response_tokens: int) -> int:
    """Read by all decoding steps of a batch in bf16: the weights once a step, the keys and values of every row.

    The first token comes from the prompt's own pass; each of the others reads what is before it.
    """
    steps = response_tokens - 1
    weights = shape.layers * layer_parameters(shape) + shape.vocabulary * shape.hidden
    contexts = sum(length * steps + steps * (steps + 1) // 2 for length in prompt_lengths)
    return BF16 * (steps * weights + 2 * shape.layers * shape.hidden * contexts)


def update_flops(job: Job, contestant: Contestant, prompt_lengths: Sequence[int]) -> int:
    """Multiplications and additions of one iteration's update, padding and recomputation left out.

    A weight takes 2 a token forward and 4 backward (2 where it is frozen); attention is causal; the head reads
    responses alone.
    """
    shape, T = job.shape, job.response_tokens
    each = 4 if job.lora or contestant.value == "adapter" else 6
    tokens = sum(length + T for length in prompt_lengths)
    squares = sum((length + T) ** 2 for length in prompt_lengths)
    trunk = each * shape.layers * layer_parameters(shape) * tokens + 6 * shape.layers * shape.hidden * squares
    head = each * shape.vocabulary * shape.hidden * len(prompt_lengths) * T
    networks = 2 if contestant.value in ("separate", "adapter") else 1
    return job.passes * (networks * trunk + head)


def verdicts(job: Job, record: Mapping[str, Any], table: Mapping[str, Row]) -> list[Verdict]:
    """Decoding against copy bandwidth and the update against the matrix rate, the best contestant of ours."""
    lengths, could = record["prompt_lengths"][1], record["gpu"]
    decode = decode_bytes(job.shape, lengths, job.response_tokens) / could["bandwidth"]
    ours = [c for c in contestants(job, with_trl=False) if c.kind == "ours" and c.name in table]
    shares = [
        [decode / table[c.name]["generate"] for c in ours],
        [update_flops(job, c, lengths) / could["rate"] / table[c.name]["update"] for c in ours],
    ]
    return [
        Verdict(what, True, least, max(found, default=None))
        for (what, least), found in zip(GPU_TARGETS.items(), shares, strict=True)
    ]


def copy_bandwidth() -> float:
    """Bytes a second of a large copy, both ways counted."""
    import torch

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source))


def matrix_rate() -> float:
    """bf16 floating-point operations a second of a large square product."""
    import torch

    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b)


def _seconds(action: Callable[[], Any], repeats: int = 20) -> float:
    import torch

    for _ in range(3):
        action()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        action()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats
