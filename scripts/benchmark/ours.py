"""apa-train's own run, held between iterations."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.jobs import Contestant, Job, overrides
from benchmark.stepper import Stepper


def run(job: Job, contestant: Contestant, folder: Path, data: Path, device: str, stepper: Stepper) -> None:
    """`train` as the command calls it; only the tracker is a subclass, which waits before the first and after each."""
    from apa_cli.config.compose import compose_train
    from apa_cli.tracking.samples import Sample
    from apa_cli.tracking.tracker import Tracker
    from apa_cli.training import run as training

    class SteppedTracker(Tracker):
        started = False

        def phase(self, name: str, done: int = 0, total: int = 0) -> None:
            if name == "generate" and not self.started:
                self.started = True
                stepper.ready()
            super().phase(name, done, total)

        def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
            super().log(iteration, metrics, samples)
            stepper.done({name: metrics[f"time/{name}"] for name in ("generate", "score", "forward", "update")})

    training.Tracker = SteppedTracker  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as scratch:
        words = overrides(job, contestant, str(folder), str(data), device, f"{scratch}/run")
        training.train(compose_train(words), words)


def known_critics() -> list[str]:
    """The kinds of value that this version's configuration knows."""
    return [kind for kind in ("separate", "shared", "adapter") if _composes(f"value.kind={kind}")]


def knows_group() -> bool:
    return _composes("advantage.name=group", "value.kind=none", "rollout.responses_per_prompt=4")


def _composes(*words: str) -> bool:
    from apa_cli.config.compose import compose_train
    from apa_cli.errors import UserError

    base: list[Any] = ["config=own", "policy.path=a/b", "reward.path=a/b", "data.path=a/b", "policy.adapter.r=4"]
    try:
        compose_train([*base, *words])
    except UserError:
        return False
    return True
