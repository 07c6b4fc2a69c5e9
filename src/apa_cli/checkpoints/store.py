"""Write a run's checkpoints atomically and remove the oldest. A full disk is a warning."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from apa_cli.checkpoints.find import PART, checkpoints_in, named_in
from apa_cli.checkpoints.manifest import write_manifest
from apa_cli.checkpoints.ownership import RUN, RUN_BEGINS, own_files, record
from apa_cli.config.schema import CheckpointConfig
from apa_cli.errors import UserError
from apa_cli.files import discard, fault_point, partial_of, put_in_place, remove_partial, write_text

BEST_FILE = "best.json"
DISK_ERRORS = (OSError, SafetensorError)  # of a full, read-only or broken disk


class Metrics(Protocol):
    """A run's other files, which must be on disk before a checkpoint."""

    def sync(self) -> bool:
        """Flush all lines to the disk. Returns whether that succeeded."""
        ...

    def copy_to(self, folder: Path) -> None:
        """Copy all lines, including those that the disk has refused."""
        ...


class Snapshot(Protocol):
    """A run at one moment, which names and writes itself."""

    @property
    def iteration(self) -> int: ...  # finished ones
    @property
    def position(self) -> tuple[int, int, int]: ...  # how far training has come
    @property
    def part(self) -> bool: ...  # in the middle of an iteration
    def write(self, folder: Path) -> None: ...


class CheckpointStore:
    """`checkpoints/iter_000050/{policy,value,trainer_state}/` with a manifest; `checkpoints/latest` and `best`.

    Without a critic there is no value/.
    A checkpoint made in the middle of iteration 51 is `iter_000050_part`.
    """

    def __init__(
        self, run_dir: Path, config: CheckpointConfig, *, warn: Callable[[str], None], metrics: Metrics
    ) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / "checkpoints"
        self.config = config
        self.failure: str | None = None  # why the newest save failed, if it did
        self._saved: tuple[int, int, int] | None = None  # position of the newest checkpoint
        self._warn, self._metrics = warn, metrics

    def due(self, iteration: int, iterations: int) -> bool:
        """Whether to save after this iteration: at the interval, and always after the last."""
        return iteration == iterations or (self.config.every > 0 and iteration % self.config.every == 0)

    def holds(self, state: Snapshot) -> bool:
        """Whether the newest checkpoint holds this state."""
        return self._saved == state.position or (self._saved is None and state.position == (0, 0, 0))

    def went_on_from(self, checkpoint: Path, state: Snapshot) -> None:
        """Note that `state` was loaded from `checkpoint`, and repair `latest` after a crash."""
        self._saved = state.position
        if checkpoint.parent == self.folder:
            self._point("latest", checkpoint)
            self._prune(checkpoint)

    def save(self, state: Snapshot) -> Path | None:
        """Write the checkpoint of `state`, point `latest` at it, and drop the oldest beyond `keep`.

        None, and a warning, where the disk does not take it: what was there before stays.
        """
        final = self.folder / f"iter_{state.iteration:06d}{PART if state.part else ''}"
        try:
            _write(final, state, sync=self._metrics.sync)
        except DISK_ERRORS as error:
            with contextlib.suppress(OSError):
                remove_partial(final.with_name(f".{final.name}.partial"))
            self.failure = _reason(error)
            kept = checkpoints_in(self.folder)
            before = f"{kept[-1].name} is kept" if kept else "there is none before it"
            self._warn(
                f"the checkpoint of iteration {state.iteration} could not be saved ({self.failure}); "
                f"{before}, the next try is at the next interval"
            )
            return None
        self.failure, self._saved = None, state.position
        self._point("latest", final)
        self._prune(final)
        return final

    def save_elsewhere(self, state: Snapshot) -> Path | None:
        """Save into a new temporary run folder if the disk refuses the run's own. None if that fails too."""
        try:
            rescue = Path(tempfile.mkdtemp(prefix=f"apa_{self.run_dir.name}_"))
        except OSError:
            return None
        try:
            record(rescue, RUN, RUN_BEGINS)
            shutil.copy(self.run_dir / "config.yaml", rescue / "config.yaml")
            self._metrics.copy_to(rescue)
            final = rescue / "checkpoints" / f"iter_{state.iteration:06d}{PART if state.part else ''}"
            _write(final, state, sync=lambda: True)
        except DISK_ERRORS:
            shutil.rmtree(rescue, ignore_errors=True)
            return None
        return rescue

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether this evaluation is better than that of the best checkpoint.

        Raises UserError when there is no such metric.
        """
        name, best = self.config.best_metric, self._best()
        if name is None:
            return False
        if name not in metrics:
            known = ", ".join(sorted(metrics))
            raise UserError("checkpoint.best_metric", f"{name} is not measured", f"choose one of {known}")
        if not math.isfinite(metrics[name]):
            return False
        if best.get("metric") != name:
            return True
        return metrics[name] > best["value"] if self.config.best_mode == "max" else metrics[name] < best["value"]

    def mark_best(self, checkpoint: Path, metrics: Mapping[str, float]) -> None:
        """Keep `checkpoint`, which has just been saved, as the best one."""
        name = self.config.best_metric or ""
        facts = {"metric": name, "value": metrics[name], "name": checkpoint.name}
        try:
            write_text(self.folder / BEST_FILE, json.dumps(facts) + "\n")
        except OSError as error:
            self._warn(f"checkpoints/best could not be set to {checkpoint.name} ({_reason(error)})")
        self._point("best", checkpoint)
        self._prune(checkpoint)

    def _best(self) -> dict[str, Any]:
        """The content of best.json, {} if there is none."""
        try:
            facts = json.loads((self.folder / BEST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def _point(self, name: str, checkpoint: Path) -> None:
        """Write the checkpoint's name to `latest` or `best`, which is for people: nothing fails where it cannot be.

        What has that name and is no pointer, as the copy of a checkpoint that `cp -rL` makes of a link, stays.
        """
        pointer = self.folder / name
        named = named_in(pointer)
        if named != checkpoint.name and (named or not os.path.lexists(pointer)):
            with contextlib.suppress(OSError):
                write_text(pointer, checkpoint.name + "\n")

    def _prune(self, newest: Path) -> None:
        """Keep the newest and the best; one made in the middle of an iteration only while it is the newest.

        Of the others what their manifests list is deleted, and no more.
        """
        kept = {newest.name, self._best().get("name")}
        found = checkpoints_in(self.folder)
        parts = [path for path in found if path.name.endswith(PART)]
        beyond = [path for path in found if path not in parts][: -self.config.keep] if self.config.keep else []
        for old in [*beyond, *parts]:
            if old.name not in kept:
                fault_point()
                discard(old, own_files(self.run_dir, old) or [])


def _write(final: Path, state: Snapshot, *, sync: Callable[[], bool]) -> None:
    partial = partial_of(final)
    fault_point()
    state.write(partial)
    fault_point()
    write_manifest(partial)
    if not sync():
        raise OSError("the lines of metrics before it are not on the disk")
    put_in_place(partial, final, own_files(final.parents[1], final))


def _reason(error: Exception) -> str:
    """`No space left on device`, without numbers and paths."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    of_system = re.search(r"I/O error: (.*) \(os error \d+\)", str(error))  # as safetensors reports it
    return of_system[1] if of_system else " ".join(str(error).split())[:200]
