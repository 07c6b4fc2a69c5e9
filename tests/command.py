"""Running the real command as a user would, and reading what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Finished:
    code: int
    output: str
    errors: str
    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of trained iterations; iteration 0 has only eval/*."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["iteration"] > 0]


def environment(**changes: str) -> dict[str, str]:
    """This process's, on one thread (tiny models are slower on more) and without a hub to ask."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HYDRA_", "PYTEST_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **changes}


def apa_train(folder: Path, *overrides: str, cwd: Path | None = None, timeout: float = 300) -> Finished:
    """`apa-train output_dir=FOLDER OVERRIDES` in a process of its own."""
    command = [str(Path(sys.executable).parent / "apa-train"), f"output_dir={folder}", *overrides]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=timeout,
        env=environment(),
        encoding="utf-8",
    )
    return Finished(code=done.returncode, output=done.stdout, errors=done.stderr, folder=folder)
