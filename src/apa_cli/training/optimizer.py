"""AdamW over policy and critic, and the learning rate over iterations."""

from __future__ import annotations

import math

import torch

from apa_cli.config.schema import OptimizerConfig
from apa_cli.models.roles import Models


def make_optimizer(models: Models, config: OptimizerConfig) -> torch.optim.AdamW:
    """Two groups, policy then critic, each with its own learning rate."""
    groups = [
        {"params": models.policy.trainable_parameters(), "initial_lr": config.learning_rate},
        {
            "params": [p for p in models.value.parameters() if p.requires_grad],
            "initial_lr": config.value_learning_rate or config.learning_rate,
        },
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=models.runtime.device.type == "cuda" or None,
    )


def learning_rate_factor(iteration: int, iterations: int, config: OptimizerConfig) -> float:
    """What the learning rate is multiplied by in iteration 0, 1, …: a linear warm-up, then the schedule.

    linear and cosine end at 0 after the last iteration.
    """
    warmup = config.warmup_iterations
    if iteration < warmup:
        return (iteration + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (iteration - warmup) / max(1, iterations - warmup)
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale both groups' initial rates; returns the policy's."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
