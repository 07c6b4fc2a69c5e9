"""TRL's runs: a process each, by a Python that has trl, which need not be this one."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apa_cli
from apa_cli.runs.folders import is_finished
from studies.runs import TRL, Size

WORKER = "studies.trl_grpo"


def why_not(python: str) -> str | None:
    """Why TRL cannot be run by this interpreter, in a line."""
    try:
        tried = subprocess.run([python, "-c", "import trl"], capture_output=True, text=True, env=_environment())
    except OSError as error:
        return f"{python}: {error.strerror}"
    return None if tried.returncode == 0 else f"{python}: {tried.stderr.strip().splitlines()[-1]}"


def make(
    cells: Mapping[str, tuple[float, float]], size: Size, output: Path, *, evaluations: int, jobs: int, python: str
) -> None:
    """Run what is missing of (learning rate, β) by name, with every seed. A run that fails is left to the page."""

    def run(job: tuple[int, str]) -> str:
        seed, name = job
        return _run(seed, name, cells[name], size, output, every=max(1, size.iterations // evaluations), python=python)

    with ThreadPoolExecutor(jobs) as pool:
        for line in pool.map(run, itertools.product(size.seeds, cells)):
            print(line, flush=True)


def _run(seed: int, name: str, cell: tuple[float, float], size: Size, output: Path, *, every: int, python: str) -> str:
    folder = (output / TRL / f"config={name},seed={seed}").absolute()
    if is_finished(folder):
        return f"{folder.name}: finished before"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    about = {"iterations": size.iterations, "prompts": size.prompts, "every": every}
    spec = {"folder": str(folder), "name": name, "seed": seed, "rate": cell[0], "beta": cell[1], **about}
    (folder / "spec.json").write_text(json.dumps(spec), "utf-8")
    with (folder / "run.log").open("w", encoding="utf-8") as log:
        command = [python, "-m", WORKER, str(folder / "spec.json")]
        done = subprocess.run(command, stdout=log, stderr=log, env=_environment(), cwd=folder)
    return f"{folder.name}: {'finished' if is_finished(folder) else f'failed ({done.returncode}), see its run.log'}"


def _environment() -> dict[str, str]:
    places = (Path(__file__).parents[1], Path(apa_cli.__file__).parents[1])
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
