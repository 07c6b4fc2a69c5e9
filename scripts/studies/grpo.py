"""Beside TRL's GRPO: the built-in task's model, reward, prompts and sizes, judged by the same evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from studies import grpo_page, trl_runs
from studies import runs as made
from studies.contestants import CONTESTANTS, EVALUATIONS, GRPO, TUNING_SEED, Contestant, choices, grid
from studies.runs import Found, Setting, Size

TITLE = "APA and PPO without a critic beside TRL's GRPO: reward per rollout and per second"
DURATION = "27 to 33 runs, 9 of them TRL's, about 40 minutes of one CPU core; needs trl, here or by --trl-python"

lines = grpo_page.lines


def settings(size: Size) -> list[Setting]:
    """Of the tuning grid, TRL's among them: those run nothing by apa-train, but are found by their names."""
    return [contestant.setting(*cell) for contestant in CONTESTANTS for cell in grid(contestant, size)]


def planned(size: Size) -> int:
    return len(settings(size)) + len(CONTESTANTS) * len(size.seeds)


def make(size: Size, output: Path, *, jobs: int, keep_weights: bool, trl_python: str) -> None:
    """Tune with one seed, choose, run the chosen with the others, and those of ours that end nearest to TRL's KL.
    Without TRL, ours alone."""
    missing = trl_runs.why_not(trl_python)
    if missing:
        print(f"TRL's GRPO is left out: {missing}", flush=True)

    def run_all(cells: Mapping[Contestant, Sequence[tuple[float, float]]], part: Size) -> None:
        ours = [c.setting(*cell) for c, wanted in cells.items() if c.recipe is not None for cell in wanted]
        made.make(ours, part, output, jobs=jobs, keep_weights=keep_weights)
        if not missing:
            wanted = {GRPO.name(*cell): cell for cell in cells.get(GRPO, [])}
            trl_runs.make(wanted, part, output, evaluations=EVALUATIONS, jobs=jobs, python=trl_python)

    run_all({contestant: grid(contestant, size) for contestant in CONTESTANTS}, replace(size, seeds=[TUNING_SEED]))
    chosen = choices(read(size, output), size)
    run_all({each: chosen[each.title].cells for each in CONTESTANTS if each.title in chosen}, size)


def read(size: Size, output: Path) -> Found:
    return made.read(settings(size), replace(size, seeds=[TUNING_SEED, *size.seeds]), output)
