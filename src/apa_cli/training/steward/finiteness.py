"""Find and name numbers that are not finite before they reach the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apa_cli.algorithms import Objective, Targets
from apa_cli.config.schema import TrainConfig
from apa_cli.models.roles import Models
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.training.update import Gradients


def all_finite(found: Gradients) -> bool:
    """Whether losses and gradient norms are finite. Waits for the device."""
    totals = [torch.as_tensor(mean.total) for mean in found.means.values()]
    numbers = [*totals, *found.norms.values()]
    return bool(torch.stack([number.isfinite().to(numbers[0].device) for number in numbers]).all())


def culprit(
    models: Models,
    trajectory: Trajectory,
    targets: Targets,
    rows: Tensor,
    objective: Objective,
    config: TrainConfig,
) -> str:
    """The first thing that is not finite in a minibatch whose gradients are in `.grad`.

    A weight, else a result of another pass over these rows, else a parameter's gradient.
    """
    parameters = models.named_parameters()
    if weights := bad_weights(parameters):
        return weights
    with models.training(), torch.no_grad():
        for part_rows in trajectory.microbatches(config.training.microbatch_tokens, rows):
            part = trajectory.select(part_rows)
            mask, T = part.response_mask, part.response_ids.shape[1]
            logprobs, hidden = models.policy.logprobs(*part.batch, temperature=config.generation.temperature)
            made = {
                "policy log-probs": torch.where(mask, logprobs, 0.0),
                "policy loss": objective.loss(logprobs, part, targets.advantages[part_rows, :T]).value,
            }
            if models.value is not None and targets.returns is not None:
                values = models.value(*part.batch, hidden=hidden)
                error = objective.value_loss(values, part, targets.returns[part_rows, :T])
                made |= {"values": torch.where(mask, values, 0.0), "value loss": error}
            for name in ("policy log-probs", "values", "policy loss", "value loss"):
                if name in made and not bool(made[name].isfinite().all()):
                    return name
    for name, parameter in parameters.items():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"gradient of {name}"
    return "norm of the gradient"


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
    for name, parameter in parameters.items():
        if not bool(parameter.isfinite().all()):
            return f"weights of {name}"
    return None


def describe_setting(iteration: int, knob: str, scores: Tensor) -> str:
    """For diagnosis: iteration 12, λ 0.3, scores from −1.2 to 3.4 (2 of 64 not finite)."""
    finite = scores[scores.isfinite()]
    spread = f"scores from {finite.min().item():.4g} to {finite.max().item():.4g}" if len(finite) else "scores"
    missing = len(scores) - len(finite)
    return f"iteration {iteration}, {knob}, {spread}" + (f" ({missing} of {len(scores)} not finite)" if missing else "")
