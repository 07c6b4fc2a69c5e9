"""AdamW for policy and critic, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch

from apa_cli.config.schema import OptimizerConfig, TrainConfig
from apa_cli.errors import UserError
from apa_cli.models.roles import Models


def make_optimizer(models: Models, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with a group for the policy and one for a critic, each with its own learning rate."""
    groups: list[dict[str, Any]] = [
        {"params": models.policy.trainable_parameters(), "initial_lr": config.learning_rate}
    ]
    if models.value is not None:
        critic = [p for p in models.value.parameters() if p.requires_grad]
        groups.append({"params": critic, "initial_lr": config.value_learning_rate or config.learning_rate})
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.betas[0], config.betas[1]),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.name == "adamw_8bit":
        eight_bit: torch.optim.Optimizer = import_bitsandbytes().optim.AdamW8bit(groups, **settings)
        return eight_bit
    return torch.optim.AdamW(groups, **settings, fused=True)  # one pass, and no temporary as large as a weight


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise UserError if the optimizer's library is missing. Called before any model is loaded."""
    if config.name == "adamw_8bit":
        import_bitsandbytes()


@torch.no_grad()
def lost_share(optimizer: torch.optim.Optimizer) -> float:
    """The share of trained bf16 weights that ±learning rate does not change, as it is rounded away.

    AdamW's steps are about that large.
    """
    lost, total = torch.zeros(()), 0
    for group in optimizer.param_groups:
        for w in group["params"]:
            if w.dtype == torch.bfloat16:
                step = group["initial_lr"]
                lost += ((w + step == w) & (w - step == w)).sum().cpu()
                total += w.numel()
    return float(lost) / max(1, total)


def import_bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        if error.name != "bitsandbytes":
            raise
        raise UserError(
            "optimizer.name", "adamw_8bit needs bitsandbytes", "pip install 'apa-cli[8bit]', or optimizer.name=adamw"
        ) from None
    return bitsandbytes


def learning_rate_factor(iteration: int, iterations: int, config: OptimizerConfig) -> float:
    """The factor of the learning rate in iteration 0, 1, …: a linear warm-up, then the schedule.

    linear and cosine end at 0 after the last iteration.
    """
    warmup = config.warmup_iterations
    if iteration < warmup:
        return (iteration + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (iteration - warmup) / max(1, iterations - warmup)
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def schedule_learning_rate(optimizer: torch.optim.Optimizer, iteration: int, config: TrainConfig) -> float:
    """Set the learning rates of iteration 0, 1, … and return the policy's."""
    factor = learning_rate_factor(iteration, config.training.iterations, config.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
