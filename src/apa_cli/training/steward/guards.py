"""training.stop_if: limits that end a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apa_cli.config.schema import StopIfConfig

_WATCHED = {  # key of training.stop_if: metric, and whether the limit is an upper one
    "kl_above": ("kl/to_init", True),
    "entropy_below": ("policy/entropy", False),
    "reward_below": ("reward/mean", False),
}


class Guards:
    """Each limit counts the iterations in a row beyond it, and fires at `patience`."""

    def __init__(self, config: StopIfConfig) -> None:
        self.config = config
        self._beyond: dict[str, int] = dict.fromkeys(_WATCHED, 0)
        self._last: dict[str, float] = {}

    def after(self, metrics: Mapping[str, float]) -> Guards:
        """The guards one iteration later. A missing or NaN metric does not change its count."""
        later = Guards(self.config)
        later.load_state_dict(self.state_dict())
        for key, (metric, _) in _WATCHED.items():
            value = metrics.get(metric, float("nan"))
            if value == value:
                later._last[key] = value
                later._beyond[key] = later._beyond[key] + 1 if later._is_beyond(key) else 0
        return later

    @property
    def fired(self) -> str | None:
        """Why the run ends, in one line, or None."""
        for key, (metric, upper) in _WATCHED.items():
            # the limit may have changed since the run was saved
            if self._beyond[key] >= self.config.patience and self._is_beyond(key):
                limit, side = getattr(self.config, key), "above" if upper else "below"
                count = f"{self._beyond[key]} iterations in a row" if self._beyond[key] > 1 else "one iteration"
                return f"training.stop_if.{key}: {metric} {side} {limit:g} for {count}, last {self._last[key]:.4g}"
        return None

    def _is_beyond(self, key: str) -> bool:
        limit = getattr(self.config, key)
        if limit is None or key not in self._last:
            return False
        return bool(self._last[key] > limit if _WATCHED[key][1] else self._last[key] < limit)

    def state_dict(self) -> dict[str, Any]:
        return {"beyond": dict(self._beyond), "last": dict(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._beyond = {**dict.fromkeys(_WATCHED, 0), **state["beyond"]}
        self._last = dict(state["last"])
