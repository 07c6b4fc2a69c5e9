"""Read back what TensorBoard shows of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def shown(run_dir: Path) -> dict[int, dict[str, float]]:
    """Scalars by step, as TensorBoard's own reader finds them. Raises AssertionError for a step that is there twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    steps: dict[int, dict[str, float]] = {}
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            assert tag not in steps.setdefault(event.step, {}), f"{tag} of step {event.step} is there twice"
            steps[event.step][tag] = event.value
    return steps


def expected(rows: list[dict[str, float | None]]) -> dict[int, dict[str, float]]:
    """The numbers of metrics.jsonl in single precision, as event files hold them."""
    return {
        int(row["iteration"]): {k: float(np.float32(v)) for k, v in row.items() if k != "iteration" and v is not None}
        for row in rows
    }
