"""A study's runs: settings written as recipes, made by one `apa-train -m`, kept, and read back by setting."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from reproduce_paper import drop_weights

from apa_cli.errors import UserError
from apa_cli.evaluation.runs import FINISHED, Run, members, read_run

EVALUATIONS = 6  # over a run, besides the one before it


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of a study is run."""

    quick: bool
    seeds: Sequence[int]
    iterations: int
    prompts: int  # held out, of each evaluation


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What differs from a recipe; its name is its own alone, so that studies share the runs of a setting."""

    name: str
    recipe: str
    keys: Mapping[str, Any]  # dotted

    def content(self, size: Size) -> str:
        usual = {
            "training.iterations": size.iterations,
            "evaluation.every": max(1, size.iterations // EVALUATIONS),
            "evaluation.prompts": size.prompts,
            "checkpoint.every": 0,
            "tracking.wandb.mode": "disabled",
        }
        config = OmegaConf.create({"defaults": [f"/config/{self.recipe}", "_self_"]})
        for key, value in {**usual, **self.keys}.items():
            OmegaConf.update(config, key, value)
        return "# @package _global_\n" + OmegaConf.to_yaml(config)


def make(settings: Sequence[Setting], size: Size, output: Path, *, jobs: int, keep_weights: bool) -> None:
    """Run what is missing. A run that fails is left to the page; what stops the whole sweep raises UserError."""
    folder, runs = output.absolute() / "settings", output.absolute() / "runs"
    (folder / "config").mkdir(parents=True, exist_ok=True)
    for setting in settings:
        (folder / "config" / f"{setting.name}.yaml").write_text(setting.content(size), "utf-8")
    quoted = str(runs).replace("'", "\\'")
    command = [sys.executable, "-m", "apa_cli.commands.train", "-m", "sweep=joblib"]
    command += [f"hydra.launcher.n_jobs={jobs}", "--config-dir", str(folder), f"output_dir='{quoted}'"]
    command += [f"config={','.join(s.name for s in settings)}", f"seed={','.join(map(str, size.seeds))}"]
    print(f"\n== {len(settings) * len(size.seeds)} runs", flush=True)
    process = subprocess.Popen(command, env={"OMP_NUM_THREADS": "1", **os.environ})
    try:
        code = process.wait()
    except KeyboardInterrupt:  # which apa-train got too: it stops its runs first
        process.wait()
        raise
    finally:
        if not keep_weights:
            drop_weights(runs)
    if code in (130, -2):
        raise KeyboardInterrupt
    if code not in (0, 1):
        raise UserError("", f"apa-train ended with exit code {code}", "see its message above")


class Found(dict[str, list[Run]]):
    """Finished runs by the setting's name, seeds in order; [] where there is none."""

    def __missing__(self, name: str) -> list[Run]:
        return []


def read(settings: Sequence[Setting], size: Size, output: Path) -> Found:
    found = Found()
    wanted = {(f"config={s.name}", seed): s.name for s, seed in itertools.product(settings, size.seeds)}
    for run in map(read_run, members(output / "runs")):
        chosen = next((word for word in run.overrides if word.startswith("config=")), "")
        name = wanted.get((chosen, run.seed))
        if name is not None and run.status == FINISHED:
            found[name] = sorted([*found[name], run], key=lambda run: run.seed)
    if not found:
        raise UserError(str(output), "no finished run of this study in it", "run it without --report-only")
    return found
