"""λ of APA and AWR, steered towards a target KL. PPO's β has a rule of its own, in `ppo`."""

import math

from apa_cli.algorithms.checks import check_non_negative, check_positive

__all__ = ["SteeredLambda"]


class SteeredLambda:
    """The coefficient λ of `apa_loss` and `awr_loss`, moved once an iteration so that KL comes to a target and stays.

    e_t = clip(log(KL_t / target), −1, 1)
    λ ← clip(λ · exp(clip(gain · e_t + damping · (e_t − e_{t−1}), −½, ½)), floor, ceiling)

    Too much KL raises λ, too little lowers it. The second term is there because KL answers late: λ sets where the
    policy is going, and the policy takes many iterations to get there. With the first term alone (damping 0) λ goes on
    falling while KL is already on its way up, and KL swings about the target. The second term answers a change of KL
    at once, and is 0 where KL stands still and at the first iteration. Error and step are clipped: one strange rollout
    moves λ by a factor of √e at the most.

    APA pulls the policy back where λ rises. AWR does not: a larger λ only slows it, so it should begin with a large λ.

    value: λ to start from, between floor and ceiling; it can be read at any time. target: nats per response.
    The state to save is λ and the last error; all else is configuration.

    Raises ValueError when value, target, gain, floor or ceiling is not above 0, damping is negative, or value does not
    lie between floor and ceiling.
    """

    MAX_ERROR = 1.0
    MAX_STEP = 0.5

    def __init__(
        self, value: float, *, target: float, gain: float, damping: float, floor: float, ceiling: float
    ) -> None:
        check_positive(value=value, target=target, gain=gain, floor=floor, ceiling=ceiling)
        check_non_negative(damping=damping)
        if not floor <= value <= ceiling:
            raise ValueError(f"value must lie between {floor} and {ceiling}, got {value}")
        self.value = float(value)
        self.target = float(target)
        self.gain = float(gain)
        self.damping = float(damping)
        self.floor = float(floor)
        self.ceiling = float(ceiling)
        self._error: float | None = None  # of the update before

    def update(self, kl: float) -> None:
        """Move λ after an iteration whose mean KL was `kl`, in nats per response. An estimate below 0 is too little.

        Raises ValueError when kl is not finite.
        """
        if not math.isfinite(kl):
            raise ValueError(f"kl must be finite, got {kl}")
        error = _clip(math.log(kl / self.target), self.MAX_ERROR) if kl > 0 else -self.MAX_ERROR
        change = 0.0 if self._error is None else error - self._error
        step = _clip(self.gain * error + self.damping * change, self.MAX_STEP)
        self.value = min(max(self.value * math.exp(step), self.floor), self.ceiling)
        self._error = error

    def state_dict(self) -> dict[str, float | None]:
        """λ and the last error, for a checkpoint."""
        return {"value": self.value, "error": self._error}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Take both from a checkpoint. λ is brought between floor and ceiling, which may have changed since.

        Raises KeyError when one is missing and ValueError when λ is not above 0 or the error not finite.
        """
        value, error = state["value"], state["error"]
        if value is None or (error is not None and not math.isfinite(error)):
            raise ValueError(f"no state of a steered λ: {state}")
        check_positive(value=value)
        self.value = min(max(float(value), self.floor), self.ceiling)
        self._error = error


def _clip(x: float, bound: float) -> float:
    return min(max(x, -bound), bound)
