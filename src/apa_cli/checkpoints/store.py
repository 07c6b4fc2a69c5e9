"""The run's checkpoints: written beside, renamed into place, the oldest removed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from apa_cli.checkpoints.export import save_policy
from apa_cli.checkpoints.training_state import save_training_state
from apa_cli.config.schema import CheckpointConfig
from apa_cli.models.roles import Models
from apa_cli.training.state import TrainingState

MANIFEST = "manifest.json"


class CheckpointStore:
    """`checkpoints/iter_000050/{policy,value,trainer_state}/` with a manifest, and `checkpoints/latest`."""

    def __init__(self, run_dir: Path, config: CheckpointConfig) -> None:
        self.folder = run_dir / "checkpoints"
        self.config = config

    def due(self, iteration: int, iterations: int) -> bool:
        """Whether to save after this iteration: at the interval, and always after the last."""
        return iteration == iterations or (self.config.every > 0 and iteration % self.config.every == 0)

    def save(self, models: Models, state: TrainingState) -> Path:
        """Write the checkpoint of `state.iteration`, point `latest` at it, and drop the oldest beyond `keep`."""
        final = self.folder / f"iter_{state.iteration:06d}"
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_policy(models.policy, partial / "policy")
        models.value.save(partial / "value")
        save_training_state(state, partial / "trainer_state")
        write_manifest(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self._point_latest_at(final)
        self._prune()
        return final

    def _point_latest_at(self, checkpoint: Path) -> None:
        link = self.folder / ".latest.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoint.name, target_is_directory=True)
        os.replace(link, self.folder / "latest")

    def _prune(self) -> None:
        if self.config.keep:
            for old in sorted(self.folder.glob("iter_*"))[: -self.config.keep]:
                shutil.rmtree(old)


def write_manifest(folder: Path) -> None:
    """Size and SHA-256 of every file below `folder`, as manifest.json in it; all synced to disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file.read())
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"format": 1, "files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _digest(data: bytes) -> hashlib._Hash:
    return hashlib.sha256(data)
