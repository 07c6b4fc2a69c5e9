"""TensorBoard's event files in the run's folder: every number of metrics.jsonl under its own name, by iteration.

torch's SummaryWriter queues for a thread that dies on a full disk, and loses what was queued when a run is killed. Its
RecordWriter writes here instead to a file that waits for the disk, a record an iteration.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apa_cli.errors import UserError
from apa_cli.tracking.lines import DiskTrouble, PatientFile

FOLDER = "tensorboard"
NAME = "events.out.tfevents."  # and a number: TensorBoard reads the files of a folder in the order of their names


class TensorBoardRun:
    """Raises UserError if TensorBoard cannot be imported."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from torch.utils.tensorboard import RecordWriter
        except Exception as error:  # a broken installation may raise anything
            missing = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("tensorboard")
            problem = "tensorboard is not installed" if missing else f"tensorboard cannot be imported ({error})"
            remedy = "pip install 'apa-cli[tensorboard]', or set it to false"
            raise UserError("tracking.tensorboard", problem, remedy) from None
        self._event, self._writer = Event, RecordWriter

    def begin(
        self, rows: Sequence[Mapping[str, Any]], start_iteration: int | None, trouble: DiskTrouble
    ) -> PatientFile:
        """A file that hides what older ones say after `start_iteration`; None: whatever they say.

        `rows` are those of metrics.jsonl so far: they are written too where there is no older file.
        """
        self._folder.mkdir(exist_ok=True)
        numbers = [int(path.suffix[1:]) for path in self._folder.glob(f"{NAME}*") if path.suffix[1:].isdecimal()]
        self.file = PatientFile(self._folder / f"{NAME}{max(numbers, default=0) + 1:06d}", trouble)
        self._write(0, file_version="brain.Event:2")
        self._write(0 if start_iteration is None else start_iteration + 1, session_log={"status": "START"})
        for row in () if numbers else rows:
            self.log(int(row["iteration"]), row)
        return self.file

    def log(self, iteration: int, metrics: Mapping[str, float | None]) -> None:
        values = [
            {"tag": name, "simple_value": float(value)}
            for name, value in metrics.items()
            if name != "iteration" and value is not None and math.isfinite(value)
        ]
        self._write(iteration, summary={"value": values})

    def _write(self, step: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._writer(self.file).write(event.SerializeToString())
