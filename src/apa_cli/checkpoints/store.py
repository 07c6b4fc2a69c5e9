"""The run's checkpoints: written beside, renamed into place, the oldest removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from apa_cli.checkpoints.export import save_policy
from apa_cli.checkpoints.manifest import write_manifest
from apa_cli.checkpoints.training_state import save_training_state
from apa_cli.config.schema import CheckpointConfig
from apa_cli.errors import UserError
from apa_cli.models.roles import Models
from apa_cli.training.state import TrainingState

BEST_FILE = "best.json"


class CheckpointStore:
    """`checkpoints/iter_000050/{policy,value,trainer_state}/` with a manifest; `checkpoints/latest` and `best`."""

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
        self._point("latest", final)
        self._prune()
        return final

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether this evaluation is better than that of the checkpoint kept as best.

        Raises UserError when there is no such metric.
        """
        name = self.config.best_metric
        if name is None:
            return False
        if name not in metrics:
            known = ", ".join(sorted(metrics))
            raise UserError("checkpoint.best_metric", f"{name} is not measured", f"choose one of {known}")
        best = self._best_value()
        return best is None or (metrics[name] > best if self.config.best_mode == "max" else metrics[name] < best)

    def mark_best(self, checkpoint: Path, metrics: Mapping[str, float]) -> None:
        """Keep `checkpoint`, which has just been saved, as the best one."""
        assert self.config.best_metric is not None
        facts = {"metric": self.config.best_metric, "value": metrics[self.config.best_metric], "name": checkpoint.name}
        beside = self.folder / f".{BEST_FILE}.partial"
        beside.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        os.replace(beside, self.folder / BEST_FILE)
        self._point("best", checkpoint)
        self._prune()

    def _best_value(self) -> float | None:
        try:
            facts = json.loads((self.folder / BEST_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return float(facts["value"]) if facts["metric"] == self.config.best_metric else None

    def _point(self, name: str, checkpoint: Path) -> None:
        link = self.folder / f".{name}.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoint.name, target_is_directory=True)
        os.replace(link, self.folder / name)

    def _prune(self) -> None:
        if self.config.keep:
            best = (self.folder / "best").resolve()
            for old in sorted(self.folder.glob("iter_*"))[: -self.config.keep]:
                if old.resolve() != best:
                    shutil.rmtree(old)
