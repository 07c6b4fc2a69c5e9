"""Run APA, PPO and AWR alike, and write what the runs say about the paper's four claims.

    python scripts/reproduce_paper.py             the built-in task: 35 to 45 minutes on two CPU cores
    python scripts/reproduce_paper.py --quick     to see that it works: a few minutes, no evidence

First each objective is tuned with seed 0, over the same learning rates and over its own KL knob (lambda of APA and
AWR, beta of PPO). Of the settings that did not collapse, the one with the highest reward under the separate evaluator
is chosen. It then runs with fresh seeds, and the other knobs with some of them at the same learning rate. Claims are
judged on fresh seeds alone. Runs are `apa-train -m sweep=joblib`; the same command again runs only what is missing.

Another task, such as published models on a GPU (each recipe needs a separate evaluator, evaluation.reward):
    python scripts/reproduce_paper.py --recipe hh_pythia160m --learning-rates 1e-6,3e-6,8e-6 --jobs 1
    python scripts/reproduce_paper.py --recipe my_apa.yaml,my_ppo.yaml,my_awr.yaml --learning-rates 1e-6,3e-6,1e-5
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from studies.comparison import learning_rate  # noqa: E402
from studies.comparison_report import write_results  # noqa: E402
from studies.comparison_study import (  # noqa: E402
    NOTE,
    RUNS,
    TUNING_SEED,
    Experiment,
    knob_of,
    read_runs,
    read_study,
)
from sweeps import at_least, recipe, sweep, write_recipes  # noqa: E402

from apa_cli.config.compose import compose_train  # noqa: E402
from apa_cli.config.sources import is_path, shown  # noqa: E402
from apa_cli.errors import UserError  # noqa: E402

PROGRAM = "reproduce_paper.py"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
KNOBS = {"apa": [0.1, 0.3, 1.0], "ppo": [0.02, 0.05, 0.2], "awr": [0.5, 1.0, 2.0]}
BUILT_IN = "reviews"
BUILT_IN_RATES = [3e-5, 1e-4, 3e-4]
BUILT_IN_LEVELS = [1.0, 1.5]  # evaluator rewards up to which rollouts are counted
BUILT_IN_PROMPTS = 128  # held out; the recipes' 64 leave the evaluator's mean uncertain by 0.2
EVALUATIONS = 12  # over a run, besides the one before it
QUICK_ITERATIONS = 15
SETTINGS = "settings"


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    arguments = parse(words)
    output = Path(arguments.output)
    try:
        if not arguments.report_only:
            experiment = experiment_of(arguments)
            command = shlex.join(["python", f"scripts/{PROGRAM}", *words])
            note(output, experiment, command=command, jobs=arguments.jobs)
            run_all(experiment, output, arguments)
        page = write_results(read_study(output), Path(arguments.results))
        print(f"Results   {shown(str(page))}")
    except UserError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=described)
    rates, levels = (",".join(f"{value:g}" for value in values) for values in (BUILT_IN_RATES, BUILT_IN_LEVELS))

    def add(name: str, text: str, **settings: object) -> None:
        parser.add_argument(name, help=text, **settings)  # type: ignore[arg-type]

    add("--recipe", "PREFIX of PREFIX_apa, PREFIX_ppo and PREFIX_awr, or three recipes or files with commas between "
        "them (default: %(default)s, the built-in task)", default=BUILT_IN)  # fmt: skip
    add("--output", "folder for the runs (default: runs/paper, with --quick runs/paper_quick, and so on)")
    add("--results", "the page to write; its pictures go into images/ beside it (default: docs/results.md for the "
        "whole built-in comparison, otherwise results.md in the runs' folder)")  # fmt: skip
    add("--quick", f"1 learning rate, 2 knobs, 2 seeds, {QUICK_ITERATIONS} iterations", action="store_true")
    add("--report-only", "run nothing: write the page from the runs that are there", action="store_true")
    add("--seeds", "fresh seeds of each chosen setting (default: 5, with --quick 2)", type=at_least(2))
    add("--jobs", "runs at a time (default: %(default)s; on one GPU: 1)", type=at_least(1), default=2)
    add("--iterations", "of each run (default: what the recipe says)", type=at_least(2))
    add("--learning-rates", f"the policy's, for all objectives (default, built-in task: {rates})", type=numbers)
    add("--levels", f"evaluator rewards up to which rollouts are counted (default, built-in task: {levels})",
        type=numbers)  # fmt: skip
    add("--evaluation-prompts", f"held-out prompts of each evaluation (default, built-in task: {BUILT_IN_PROMPTS}; "
        "otherwise what the recipe says)", type=at_least(2))  # fmt: skip
    add("--keep-weights", "keep the runs' checkpoints and final models, not their figures alone", action="store_true")
    arguments = parser.parse_args(words)
    built_in = arguments.recipe == BUILT_IN
    parts = ["paper", *([] if built_in else [Path(arguments.recipe.split(",")[0]).stem])]
    arguments.output = arguments.output or "runs/" + "_".join([*parts, *(["quick"] if arguments.quick else [])])
    whole = built_in and not arguments.quick and arguments.iterations is None
    arguments.results = arguments.results or (str(PAGE) if whole else f"{arguments.output}/results.md")
    return arguments


def numbers(text: str) -> list[float]:
    values = sorted({float(part) for part in text.split(",")})
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise argparse.ArgumentTypeError(f"positive numbers with commas between them, not {text}")
    return values


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """Raises UserError where the recipes do not fit."""
    built_in, quick = arguments.recipe == BUILT_IN, arguments.quick
    recipes = recipes_of(arguments.recipe)
    rates = arguments.learning_rates or (BUILT_IN_RATES if built_in else None)
    if rates is None:
        raise UserError("--learning-rates", "no default for this recipe", "give some: --learning-rates 1e-6,3e-6,1e-5")
    if quick and not arguments.learning_rates:
        rates = [rates[len(rates) // 2]]
    usual = compose_train([f"config={recipes['apa']}"]).training.iterations
    return Experiment(
        recipes=recipes,
        learning_rates=rates,
        knobs={objective: values[:2] if quick else values for objective, values in KNOBS.items()},
        seeds=arguments.seeds or (2 if quick else 5),
        iterations=arguments.iterations or (QUICK_ITERATIONS if quick else usual),
        evaluation_prompts=arguments.evaluation_prompts or (BUILT_IN_PROMPTS if built_in else None),
        reward_levels=arguments.levels or (BUILT_IN_LEVELS if built_in else []),
        quick=quick,
    )


def recipes_of(text: str) -> dict[str, str]:
    """The recipe of each objective."""
    names = text.split(",") if "," in text else [f"{text}_{objective}" for objective in KNOBS]
    names = [os.path.abspath(name) if is_path(name) else name for name in names]
    found = {}
    for name in names:
        config = compose_train([f"config={name}"])
        if not config.evaluation.reward.given:
            raise UserError(f"--recipe {name}", "has no separate evaluator", "set evaluation.reward in it")
        found[config.objective.name] = name
    if set(found) != set(KNOBS) or len(names) != len(KNOBS):
        raise UserError(f"--recipe {text}", f"has the objectives {', '.join(found)}", "give one each of apa, ppo, awr")
    return {objective: found[objective] for objective in KNOBS}


def setting_name(objective: str, rate: float, knob: float) -> str:
    return f"{objective}_lr{rate:g}_{'beta' if objective == 'ppo' else 'lambda'}{knob:g}"


def write_settings(experiment: Experiment, output: Path) -> list[str]:
    """One recipe for each setting of the grid; their names."""
    prompts = {} if experiment.evaluation_prompts is None else {"evaluation.prompts": experiment.evaluation_prompts}
    recipes = {}
    for objective, base in experiment.recipes.items():
        for rate, knob in itertools.product(experiment.learning_rates, experiment.knobs[objective]):
            keys = {
                f"objective.{'kl_coef' if objective == 'ppo' else 'kl_lambda'}": knob,
                "objective.kl_target": None,
                "optimizer.learning_rate": rate,
                "training.iterations": experiment.iterations,
                "evaluation.every": math.ceil(experiment.iterations / EVALUATIONS),
                **prompts,
                "checkpoint.every": 0,
                "tracking.wandb.mode": "disabled",
            }
            recipes[setting_name(objective, rate, knob)] = recipe(base, keys)
    write_recipes(output / SETTINGS, recipes)
    return list(recipes)


def note(output: Path, experiment: Experiment, *, command: str, jobs: int) -> None:
    """Keep what is run, and on what. Raises UserError where the folder holds another experiment."""
    file, now = output / NOTE, asdict(experiment)
    before = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for name in ("recipes", "iterations", "evaluation_prompts", "quick"):
        if before and before["experiment"][name] != now[name]:
            problem = f"holds an experiment with {name} {before['experiment'][name]}, now {now[name]}"
            raise UserError(f"--output {shown(str(output))}", problem, "choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "jobs": jobs, "command": command}
    content = {"experiment": now, **machine, "wall_seconds": before.get("wall_seconds", 0.0)}
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def run_all(experiment: Experiment, output: Path, arguments: argparse.Namespace) -> None:
    grid = write_settings(experiment, output)
    make("tuning", output, grid, [TUNING_SEED], arguments)
    tuned, others = [], []
    for objective, choice in experiment.choices(read_runs(output)).items():
        run = choice.setting.runs[0]
        rate = learning_rate(run)
        print(f"chosen for {objective}: learning rate {rate:g}, {choice.setting.knob}", flush=True)
        tuned.append(setting_name(objective, rate, knob_of(run)))
        others += [setting_name(objective, rate, knob) for knob in experiment.knobs[objective] if knob != knob_of(run)]
    make("chosen settings, fresh seeds", output, tuned, range(1, experiment.seeds + 1), arguments)
    make("other knobs, fresh seeds", output, others, range(1, experiment.fewer_seeds + 1), arguments)


def make(title: str, output: Path, names: list[str], seeds: Sequence[int], arguments: argparse.Namespace) -> None:
    print(f"\n== {title}: {len(names) * len(seeds)} runs", flush=True)
    places = {"settings": output / SETTINGS, "runs": output / RUNS}
    started = time.perf_counter()
    try:
        sweep(names, seeds, **places, jobs=arguments.jobs, keep_weights=arguments.keep_weights)
    finally:
        content = json.loads((output / NOTE).read_text("utf-8"))
        content["wall_seconds"] += time.perf_counter() - started
        (output / NOTE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
