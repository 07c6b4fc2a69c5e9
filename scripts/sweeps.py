"""Settings as recipes, run with every seed by one `apa-train -m`: what the scripts that compare settings share."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from apa_cli.errors import UserError
from apa_cli.runs.folders import is_finished, members


def recipe(base: str, keys: Mapping[str, Any]) -> str:
    """A recipe's text: `base`, and the dotted keys that differ from it."""
    config = OmegaConf.create({"defaults": [f"/config/{base}", "_self_"]})
    for key, value in keys.items():
        OmegaConf.update(config, key, value)
    return "# @package _global_\n" + OmegaConf.to_yaml(config)


def write_recipes(folder: Path, recipes: Mapping[str, str]) -> None:
    """For Hydra's --config-dir `folder`."""
    (folder / "config").mkdir(parents=True, exist_ok=True)
    for name, text in recipes.items():
        (folder / "config" / f"{name}.yaml").write_text(text, "utf-8")


def sweep(
    names: Sequence[str], seeds: Sequence[int], *, settings: Path, runs: Path, jobs: int, keep_weights: bool
) -> None:
    """The recipes in `settings`, every one with the first seed before any with the second; finished runs are passed.

    A run that fails is left to the report; what stops the whole sweep raises UserError, Ctrl-C KeyboardInterrupt.
    """
    runs = runs.absolute()
    quoted = str(runs).replace("'", "\\'")
    command = [sys.executable, "-m", "apa_cli.commands.train", "-m", "sweep=joblib"]
    command += [f"hydra.launcher.n_jobs={jobs}", "--config-dir", str(settings.absolute()), f"output_dir='{quoted}'"]
    command += [f"seed={','.join(map(str, seeds))}", f"config={','.join(names)}"]
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


def drop_weights(runs: Path) -> None:
    """Of finished runs: only their figures are compared."""
    for run in filter(is_finished, members(runs)):
        for weights in ("checkpoints", "final"):
            shutil.rmtree(run / weights, ignore_errors=True)


def at_least(least: int) -> Callable[[str], int]:
    """For argparse."""

    def whole(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"at least {least}")
        return int(text)

    return whole
