"""Numbers that are not finite: found before they reach the optimizer, named, counted, and at last a reason to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apa_cli.errors import DivergedError
from apa_cli.rollouts.record import Rollout


def sound_rows(rollout: Rollout) -> Tensor:
    """(B,) bool: rows with a finite number at every counted token."""
    sound = torch.ones_like(rollout.ended)
    for tensor in _made(rollout).values():
        sound = sound & _finite(tensor, rollout.response_mask)
    return sound


def usable_rows(rollout: Rollout, scores: Tensor) -> Tensor | None:
    """(B,) bool: sound rows whose score (B,) is finite too. None where that is all of them."""
    usable = sound_rows(rollout) & scores.isfinite()
    return None if bool(usable.all()) else usable


def trained_rows(rollout: Rollout, usable: Tensor | None) -> Tensor:
    """(B,) bool, on the CPU: rows that go into minibatches. Sound ones that are not usable lack a score.

    Of the model's own faults every minibatch is to hear: a row that is not sound stays in.
    """
    everywhere = torch.ones(len(rollout.ended), dtype=torch.bool)
    return everywhere if usable is None else (usable | ~sound_rows(rollout)).cpu()


def sound_part(rollout: Rollout) -> Rollout:
    """What can be measured of a rollout: its sound rows, or where there are none, what there is."""
    sound = sound_rows(rollout)
    return rollout.select(sound.nonzero().flatten().cpu()) if bool(sound.any()) and not bool(sound.all()) else rollout


def fault_in(rollout: Rollout, rows: Tensor) -> str:
    """What is not finite in these rows, of the things made before the update in the order of their making."""
    mask = rollout.response_mask[rows]
    return next(name for name, tensor in _made(rollout).items() if not bool(_finite(tensor[rows], mask).all()))


def _made(rollout: Rollout) -> dict[str, Tensor]:
    made = {
        "rollout log-probs": rollout.rollout_logprobs,
        "reference log-probs": rollout.reference_logprobs,
        "values": rollout.values,
    }
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def _finite(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T), (B, T) -> (B,): whether all counted numbers of a row are finite."""
    return (x.isfinite() | ~mask).all(dim=1)


def bad_weights(parameters: dict[str, nn.Parameter]) -> str | None:
    """The first parameter that is not finite. It spoils everything that is made with it."""
    for name, parameter in parameters.items():
        if not bool(parameter.isfinite().all()):
            return f"weights of {name}"
    return None


class Suspects:
    """Tensors of one minibatch in the order of their making. Looking at them waits for the device; noting does not."""

    def __init__(self) -> None:
        self._finite: dict[str, Tensor] = {}  # name: scalar bool on the device

    def note(self, name: str, tensor: Tensor, mask: Tensor | None = None) -> None:
        """Take in one micro-batch's part of what is called `name`, or the counted positions of it."""
        finite = tensor.detach().isfinite()
        finite = (finite if mask is None else finite | ~mask).all()
        self._finite[name] = self._finite[name] & finite if name in self._finite else finite

    def all_finite(self, *norms: Tensor) -> bool:
        """Whether everything noted is finite, and these gradient norms too."""
        flags = [*self._finite.values(), *(norm.isfinite() for norm in norms)]
        return bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())

    def culprit(self, parameters: dict[str, nn.Parameter]) -> str:
        """The first thing that is not finite: a weight, what was noted, or a parameter's gradient."""
        if weights := bad_weights(parameters):
            return weights
        for name, finite in self._finite.items():
            if not bool(finite):
                return name
        for name, parameter in parameters.items():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"gradient of {name}"
        return "norm of the gradient"


@dataclass(kw_only=True)
class Skips:
    """Counts minibatches left out one after the other, from one iteration to the next. At `limit` the run stops."""

    limit: int
    in_a_row: int = 0

    def passed(self) -> None:
        """A minibatch was sound."""
        self.in_a_row = 0

    def skipped(self, culprit: str, setting: str) -> None:
        """A minibatch was left out because of `culprit`. Raises DivergedError when it was the last allowed.

        The count then begins anew, so that a run that goes on from there has as many tries again.
        """
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            count, self.in_a_row = self.in_a_row, 0
            raise DivergedError(culprit, count, setting)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row = state["in_a_row"]


def describe_setting(iteration: int, knob: str, scores: Tensor) -> str:
    """Where a run stands, for the diagnosis: iteration 12, λ 0.3, scores from −1.2 to 3.4 (2 of 64 not finite)."""
    finite = scores[scores.isfinite()]
    spread = f"scores from {finite.min().item():.4g} to {finite.max().item():.4g}" if len(finite) else "scores"
    missing = len(scores) - len(finite)
    return f"iteration {iteration}, {knob}, {spread}" + (f" ({missing} of {len(scores)} not finite)" if missing else "")
