"""Who is compared with TRL's GRPO, at which learning rates and KL knobs, and which of these the tuning seed chooses."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from apa_cli.runs.settings import Setting as Line
from apa_cli.tracking.style import BLUE, GREEN, ORANGE
from studies.comparison import Choice, choose, collapsed
from studies.group import GROUP
from studies.runs import Found, Setting, Size

EVALUATIONS = 12
TUNING_SEED = 0
RATES = (1e-4, 3e-4)


@dataclass(frozen=True, kw_only=True)
class Contestant:
    title: str
    knob: str  # its name
    key: str
    values: tuple[float, ...]
    recipe: str | None  # None: TRL's
    colour: str

    def name(self, rate: float, value: float) -> str:
        return f"{self.title.split()[-1].lower()}_group4_lr{rate:g}_{self.key.rsplit('_', 1)[-1]}{value:g}"

    def setting(self, rate: float, value: float) -> Setting:
        keys: dict[str, Any] = {**GROUP, "optimizer.learning_rate": rate, self.key: value}
        return Setting(
            name=self.name(rate, value), recipe=self.recipe or "reviews_apa_group", keys=keys, evaluations=EVALUATIONS
        )


APA = Contestant(
    title="APA", knob="λ", key="objective.kl_lambda", values=(0.1, 0.3, 1.0), recipe="reviews_apa", colour=BLUE
)
PPO = Contestant(
    title="PPO", knob="β", key="objective.kl_coef", values=(0.02, 0.05, 0.2), recipe="reviews_ppo", colour=GREEN
)
GRPO = Contestant(
    title="TRL's GRPO", knob="β", key="objective.kl_coef", values=(0.0, 0.04, 0.2), recipe=None, colour=ORANGE
)
CONTESTANTS = (APA, PPO, GRPO)


def grid(contestant: Contestant, size: Size) -> list[tuple[float, float]]:
    rates, values = (RATES[1:2], contestant.values[:1]) if size.quick else (RATES, contestant.values)
    return list(itertools.product(rates, values))


@dataclass(frozen=True, kw_only=True)
class Chosen:
    cell: tuple[float, float]
    choice: Choice
    nearest: tuple[float, float]  # its neighbour of TRL's choice in KL

    @property
    def cells(self) -> list[tuple[float, float]]:
        return list(dict.fromkeys([self.cell, self.nearest]))


def choices(found: Found, size: Size) -> dict[str, Chosen]:
    """By title: of the tuning seed's runs the highest evaluator reward at the end among those that did not collapse,
    and, for a comparison at equal KL, the one that ends nearest to the KL of TRL's choice."""
    measured: dict[str, dict[tuple[float, float], Line]] = {}
    chosen: dict[str, tuple[tuple[float, float], Choice]] = {}
    for contestant in CONTESTANTS:
        lines = {}
        for cell in grid(contestant, size):
            mine = [run for run in found[contestant.name(*cell)] if run.seed == TUNING_SEED]
            if any(run.last("eval/evaluator") is not None for run in mine):
                lines[cell] = Line(line=contestant.title, knob=f"{cell}", runs=tuple(mine))
        if lines:
            choice = choose(list(lines.values()))
            cell = next(cell for cell, line in lines.items() if line is choice.setting)
            measured[contestant.title], chosen[contestant.title] = lines, (cell, choice)

    def ends_at(line: Line) -> float:
        return next((kl for run in line.runs if (kl := run.last("eval/kl")) is not None), math.inf)

    def nearest(title: str, cell: tuple[float, float], choice: Choice) -> tuple[float, float]:
        if GRPO.title not in chosen or title == GRPO.title:
            return cell
        aim = ends_at(chosen[GRPO.title][1].setting)
        sound = {c: line for c, line in measured[title].items() if not any(map(collapsed, line.runs))}
        return min(sound or {cell: choice.setting}, key=lambda c: abs(ends_at(measured[title][c]) - aim))

    return {
        title: Chosen(cell=cell, choice=choice, nearest=nearest(title, cell, choice))
        for title, (cell, choice) in chosen.items()
    }
