"""Name numbers that are not finite before they reach the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apa_cli.models.roles import Models
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.training.update import Gradients


def all_finite(found: Gradients) -> bool:
    """Whether losses and gradient norms are finite. Waits for the device."""
    totals = [torch.as_tensor(mean.total) for mean in found.means.values()]
    numbers = [*totals, *found.norms.values()]
    return bool(torch.stack([number.isfinite().to(numbers[0].device) for number in numbers]).all())


def culprit(models: Models, found: Gradients) -> str:
    """What is not finite in a minibatch whose gradients are in `.grad`: a weight, else a loss, else a gradient."""
    parameters = models.named_parameters()
    if weights := bad_weights(parameters):
        return weights
    for name, mean in found.means.items():
        if not bool(torch.as_tensor(mean.total).isfinite()):
            return name
    bad = (name for name, p in parameters.items() if p.grad is not None and not bool(p.grad.isfinite().all()))
    return f"gradient of {next(bad, 'all weights together')}"


def fault_in(trajectory: Trajectory, rows: Tensor) -> str:
    """The first thing made before the update that is not finite in these rows."""
    mask = trajectory.response_mask[rows]
    made = {
        "rollout log-probs": trajectory.rollout_logprobs,
        "reference log-probs": trajectory.reference_logprobs,
        "values": trajectory.values,
    }
    known = {name: tensor[rows] for name, tensor in made.items() if tensor is not None}
    return next(name for name, tensor in known.items() if not bool((tensor.isfinite() | ~mask).all()))


def bad_weights(parameters: dict[str, nn.Parameter]) -> str | None:
    """The first parameter that is not finite."""
    bad = (name for name, parameter in parameters.items() if not bool(parameter.isfinite().all()))
    return next((f"weights of {name}" for name in bad), None)
