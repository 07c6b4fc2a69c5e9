"""A comparison's runs read back: which belong to it, what was chosen, and what claims are judged on.

OUTPUT/experiment.json says what is run, OUTPUT/runs/ holds the runs. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apa_cli.errors import UserError
from apa_cli.runs.folders import FINISHED, Run, members, read_run
from apa_cli.runs.settings import Setting
from studies.comparison import (
    Choice,
    Difference,
    Measure,
    choose,
    compare,
    learning_rate,
    measures,
    settings_of,
)

OURS = "apa"
NOTE, RUNS = "experiment.json", "runs"
TUNING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is run: a grid with the tuning seed, then fresh seeds from 1 on at the chosen learning rates."""

    recipes: Mapping[str, str]  # by objective
    learning_rates: Sequence[float]
    knobs: Mapping[str, Sequence[float]]
    seeds: int  # fresh ones of each chosen setting
    iterations: int
    evaluation_prompts: int | None  # None: as the recipe says
    reward_levels: Sequence[float]
    quick: bool

    @property
    def fewer_seeds(self) -> int:
        """Of the knobs that were not chosen: they show the trade-off, and no claim rests on them."""
        return min(self.seeds, max(2, self.seeds - 2))

    @property
    def size(self) -> int:
        """Runs in all."""
        knobs = [len(self.knobs[objective]) for objective in self.recipes]
        return sum(len(self.learning_rates) * n + self.seeds + self.fewer_seeds * (n - 1) for n in knobs)

    def holds(self, run: Run) -> bool:
        """Whether the run is finished and one of this experiment's; its folder may hold others."""
        return (
            run.status == FINISHED
            and run.objective in self.recipes
            and learning_rate(run) in self.learning_rates
            and knob_of(run) in self.knobs[run.objective]
            and TUNING_SEED <= run.seed <= self.seeds
        )

    def choices(self, runs: Sequence[Run]) -> dict[str, Choice]:
        """By objective. Raises UserError where one has no run to choose from."""
        found = {}
        for objective in self.recipes:
            tried = [run for run in runs if self.holds(run) and run.objective == objective and run.seed == TUNING_SEED]
            try:
                found[objective] = choose(settings_of(tried))
            except ValueError:
                problem = "no run of its tuning grid is finished and judged by a separate evaluator"
                raise UserError(objective, problem, "see what stopped them, or run them") from None
        return found


@dataclass(frozen=True, kw_only=True)
class Study:
    experiment: Experiment
    choices: Mapping[str, Choice]  # by objective; ours and the rivals
    tuned: Mapping[str, Setting]  # the chosen settings' runs with fresh seeds: what claims are judged on
    knobs: Sequence[Setting]  # these and the other knobs at the chosen learning rate, fresh seeds
    grid: Sequence[Setting]  # tuning
    failures: Sequence[tuple[str, str]]  # run, reason
    circumstances: Mapping[str, Any]  # command, wall_seconds, cores, machine, jobs

    @property
    def measures(self) -> list[Measure]:
        return measures(self.experiment.reward_levels)

    @property
    def rivals(self) -> list[Setting]:
        return [setting for objective, setting in self.tuned.items() if objective != OURS]

    @property
    def differences(self) -> list[Difference]:
        return [compare(self.tuned[OURS], rival, m) for m in self.measures for rival in self.rivals]

    @property
    def runs(self) -> list[Run]:
        return [run for setting in (*self.grid, *self.knobs) for run in setting.runs]


def read_runs(output: Path) -> list[Run]:
    return [read_run(place) for place in members(output / RUNS)]


def read_study(output: Path) -> Study:
    """Raises UserError where there is too little to compare."""
    if not (output / NOTE).is_file():
        raise UserError(str(output), f"no {NOTE} in it", "name the folder of an experiment, or run one")
    content = json.loads((output / NOTE).read_text("utf-8"))
    experiment = Experiment(**content["experiment"])
    everything = read_runs(output)
    runs, choices = [run for run in everything if experiment.holds(run)], experiment.choices(everything)
    rates = {objective: learning_rate(choice.setting.runs[0]) for objective, choice in choices.items()}
    knobs = settings_of([r for r in runs if r.seed != TUNING_SEED and learning_rate(r) == rates[r.objective]])
    tuned = {}
    for objective, choice in choices.items():
        same = [s for s in knobs if (s.line, s.knob) == (choice.setting.line, choice.setting.knob)]
        if not same:
            raise UserError(objective, "no finished run of the chosen setting with a fresh seed", "run them")
        tuned[objective] = same[0]
    return Study(
        experiment=experiment,
        choices=choices,
        tuned=tuned,
        knobs=knobs,
        grid=settings_of([run for run in runs if run.seed == TUNING_SEED]),
        failures=[(run.name, run.reason or run.status) for run in everything if run.status != FINISHED],
        circumstances=content,
    )


def knob_of(run: Run) -> float:
    return float(run.config["objective.kl_coef" if run.objective == "ppo" else "objective.kl_lambda"])
