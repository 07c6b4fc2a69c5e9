"""A study's runs: settings written as recipes, made by one `apa-train -m`, kept, and read back by setting."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps import recipe, sweep, write_recipes

from apa_cli.errors import UserError
from apa_cli.runs.folders import FINISHED, Run, members, read_run

RUNS, TRL = "runs", "trl"  # folders of the output: of apa-train's runs, and of TRL's in the same form
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
    evaluations: int = EVALUATIONS  # 0: before and after only

    def content(self, size: Size) -> str:
        usual = {
            "training.iterations": size.iterations,
            "evaluation.every": max(1, size.iterations // self.evaluations) if self.evaluations else 0,
            "evaluation.prompts": size.prompts,
            "checkpoint.every": 0,
            "tracking.wandb.mode": "disabled",
        }
        return recipe(self.recipe, {**usual, **self.keys})


def make(settings: Sequence[Setting], size: Size, output: Path, *, jobs: int, keep_weights: bool) -> None:
    """Run what is missing, of settings that studies share once. A run that fails is left to the page."""
    different = {setting.name: setting.content(size) for setting in settings}
    write_recipes(output / "settings", different)
    print(f"\n== {len(different) * len(size.seeds)} runs", flush=True)
    places = {"settings": output / "settings", "runs": output / RUNS}
    sweep(list(different), size.seeds, **places, jobs=jobs, keep_weights=keep_weights)


class Found(dict[str, list[Run]]):
    """Finished runs by the setting's name, seeds in order; [] where there is none."""

    def __missing__(self, name: str) -> list[Run]:
        return []


def read(settings: Sequence[Setting], size: Size, output: Path) -> Found:
    found = Found()
    wanted = {(f"config={s.name}", seed): s.name for s, seed in itertools.product(settings, size.seeds)}
    for run in map(read_run, (folder for place in (RUNS, TRL) for folder in members(output / place))):
        chosen = next((word for word in run.overrides if word.startswith("config=")), "")
        name = wanted.get((chosen, run.seed))
        if name is not None and run.status == FINISHED:
            found[name] = sorted([*found[name], run], key=lambda run: run.seed)
    if not found:
        raise UserError(str(output), "no finished run of this study in it", "run it without --report-only")
    return found
