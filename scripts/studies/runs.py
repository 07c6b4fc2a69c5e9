"""Settings as recipes, every one with every seed by one `apa-train -m`; the runs read back by setting."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

import apa_cli
from apa_cli.config.sources import shown
from apa_cli.errors import UserError
from apa_cli.runs.folders import FINISHED, Run, is_finished, members, read_run

RECORD = (".apa-cli", "config.yaml", "metrics.jsonl", "overrides.yaml", "summary.json", "versions.json")  # of a run
RUNS, TRL, SETTINGS = "runs", "trl", "settings"  # folders of the output: of apa-train's runs, of TRL's, of the recipes
EVALUATIONS = 6  # over a run, besides the one before it


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of a study is run."""

    quick: bool
    seeds: Sequence[int]
    iterations: int
    prompts: int  # held out, of each evaluation
    gpu: bool = False  # larger batches


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What differs from a recipe. Its name is its own alone, so that studies share the runs of a setting."""

    name: str
    recipe: str
    objective: str | None = None  # a preset in place of the recipe's
    trl: bool = False  # run by TRL's GRPO
    keys: Mapping[str, Any]  # dotted
    evaluations: int = EVALUATIONS  # 0: before and after only

    def every(self, size: Size) -> int:
        return math.ceil(size.iterations / self.evaluations) if self.evaluations else 0

    def content(self, size: Size) -> str:
        """The recipe's text."""
        preset = [{"override /objective": self.objective}] if self.objective else []
        config = OmegaConf.create({"defaults": [f"/config/{self.recipe}", *preset, "_self_"]})
        usual = {"training.iterations": size.iterations, "evaluation.every": self.every(size)}
        usual |= {"evaluation.prompts": size.prompts, "checkpoint.every": 0, "tracking.wandb.mode": "disabled"}
        if warmup := (keys := dict(self.keys)).get("value.warmup_iterations"):
            keys["value.warmup_iterations"] = min(warmup, size.iterations // 6)  # for a quick run
        for key, value in {**usual, **keys}.items():
            OmegaConf.update(config, key, value)
        return "# @package _global_\n" + OmegaConf.to_yaml(config)


class Found(dict[str, list[Run]]):
    """Finished runs by the setting's name, seeds in order; [] where there is none."""

    def __init__(self, runs: Mapping[str, list[Run]] | None = None) -> None:
        super().__init__(runs or {})
        self.failures: dict[str, str] = {}  # run: reason

    def __missing__(self, name: str) -> list[Run]:
        return []


Stages = Iterator[tuple[Sequence[Setting], Sequence[int]]]  # each with its seeds


def make(stages: Stages, size: Size, output: Path, *, jobs: int) -> None:
    """Run what is missing, stage after stage. A run that fails is left to the page.

    Raises UserError where the folder holds other settings or the whole sweep stops, KeyboardInterrupt at Ctrl-C.
    """
    for settings, seeds in stages:
        ours = {setting.name: setting.content(size) for setting in settings if not setting.trl}
        theirs = [setting for setting in settings if setting.trl]
        print(f"\n== {len(settings) * len(seeds)} runs", flush=True)
        if ours:
            write_recipes(output, ours)
            sweep(list(ours), seeds, output, jobs=jobs)
        if theirs and find_spec("trl") is None:
            print("TRL's GRPO is left out: trl is not installed here", flush=True)
        elif theirs:
            with ThreadPoolExecutor(jobs) as pool:
                for line in pool.map(lambda job: trl_run(*job, size, output), itertools.product(theirs, seeds)):
                    print(line, flush=True)


def trl_run(setting: Setting, seed: int, size: Size, output: Path) -> str:
    """One run of TRL's GRPO, if it is missing; what became of it. A run that fails is left to the page."""
    folder = (output / TRL / f"config={setting.name},seed={seed}").absolute()
    if is_finished(folder):
        return f"{folder.name}: finished before"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = folder / f"{setting.name}.yaml"
    recipe.write_text(setting.content(size), "utf-8")
    places = (Path(__file__).parents[1], Path(apa_cli.__file__).parents[1], os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(str(place) for place in places if place)
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    with (folder / "run.log").open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "studies.trl_grpo", str(recipe), str(seed)]
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    return f"{folder.name}: {'finished' if is_finished(folder) else f'failed ({code}), see its run.log'}"


def write_recipes(output: Path, recipes: Mapping[str, str]) -> None:
    """For Hydra's --config-dir. Raises UserError where a finished run is there of another setting with that name."""
    done = {word.split("=")[1] for run in read_all(output) for word in run.overrides if word.startswith("config=")}
    folder = output / SETTINGS / "config"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in recipes.items():
        file = folder / f"{name}.yaml"
        if name in done and file.exists() and file.read_text("utf-8") != text:
            raise UserError(f"--output {shown(str(output))}", f"holds other runs named {name}", "choose another folder")
        file.write_text(text, "utf-8")


def sweep(names: Sequence[str], seeds: Sequence[int], output: Path, *, jobs: int) -> None:
    """Every recipe with the first seed before any with the second, so that a part of it is a whole picture."""
    runs = (output / RUNS).absolute()
    quoted = str(runs).replace("'", "\\'")
    command = [sys.executable, "-m", "apa_cli.commands.train", "-m", "sweep=joblib", f"hydra.launcher.n_jobs={jobs}"]
    command += ["--config-dir", str((output / SETTINGS).absolute()), f"output_dir='{quoted}'"]
    command += [f"seed={','.join(map(str, seeds))}", f"config={','.join(names)}"]
    process = subprocess.Popen(command, env={"OMP_NUM_THREADS": "1", **os.environ})
    try:
        code = process.wait()
    except KeyboardInterrupt:  # which apa-train got too: it stops its runs first
        process.wait()
        raise
    finally:
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


def keep(output: Path, kept: Path) -> None:
    """Copy what finished runs recorded to a folder of the repository, without where they ran."""
    for place in (RUNS, TRL):
        for run in filter(is_finished, members(output / place)):
            target = kept / place / run.name
            target.mkdir(parents=True, exist_ok=True)
            for file in (run / name for name in RECORD if (run / name).exists()):
                text = file.read_text("utf-8")
                if file.name in ("config.yaml", "overrides.yaml"):
                    noted = yaml.safe_load(text)
                    words = isinstance(noted, list)
                    left = [w for w in noted if "output_dir=" not in w] if words else {**noted, "output_dir": None}
                    text = yaml.safe_dump(left, sort_keys=False)
                (target / file.name).write_text(text, "utf-8")
    shutil.copytree(output / SETTINGS, kept / SETTINGS, dirs_exist_ok=True)


def restore(kept: Path, output: Path) -> None:
    """Put kept runs where they are looked for, so that none is run again."""
    for place in (SETTINGS, RUNS, TRL):
        for item in kept.glob(f"{place}/*"):
            if not (output / place / item.name).exists():
                shutil.copytree(item, output / place / item.name)


def read_all(output: Path) -> list[Run]:
    return [read_run(folder) for place in (RUNS, TRL) for folder in members(output / place)]


def read(settings: Sequence[Setting], seeds: Sequence[int], output: Path) -> Found:
    """Raises UserError where there is no finished run of these."""
    found, names = Found(), {f"config={setting.name}": setting.name for setting in settings}
    for run in read_all(output):
        name = next((names[word] for word in run.overrides if word in names), None)
        if name is None:
            continue
        if run.status != FINISHED:
            found.failures[run.name] = run.reason or run.status
        elif run.seed in seeds:
            found[name] = sorted([*found[name], run], key=lambda run: run.seed)
    if not found:
        raise UserError(str(output), "no finished run of this study in it", "run it without --report-only")
    return found
