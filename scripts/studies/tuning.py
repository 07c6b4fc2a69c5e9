"""Objectives tuned by one rule on one seed, over the same learning rates and a KL knob of their own each.

Of the settings that did not collapse the one with the highest reward under the separate evaluator is chosen; it then
runs with fresh seeds, which alone are judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apa_cli.runs.folders import Run
from apa_cli.tracking.report import format_number
from studies.compare import Row
from studies.draw import LOOKS, Line
from studies.measures import choose, collapsed
from studies.page import table
from studies.runs import Found, Setting, Size, Stages

TUNING_SEED = 0
HEADER = ("", "learning rate", "knob", "at the edge of the grid")  # of what a chosen cell is
EVALUATIONS = 12

Cell = tuple[float, float]  # learning rate, knob


@dataclass(frozen=True, kw_only=True, eq=False)
class Contestant:
    title: str
    stem: str  # of its settings' names
    knob: str  # its name
    key: str
    values: tuple[float, ...]
    recipe: str
    objective: str | None = None  # a preset in place of the recipe's
    trl: bool = False  # run by TRL's GRPO
    keys: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, cell: Cell) -> Setting:
        word = self.key.rsplit("_", 1)[-1]
        keys = {**self.keys, "optimizer.learning_rate": cell[0], self.key: cell[1]}
        name = f"{self.stem}_lr{cell[0]:g}_{word}{cell[1]:g}"
        return Setting(name=name, recipe=self.recipe, objective=self.objective, trl=self.trl, keys=keys,
                       evaluations=EVALUATIONS)  # fmt: skip

    def said(self, value: float) -> str:
        return f"{self.knob} {value:g}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    contestants: Sequence[Contestant]  # the first is what the others are compared with
    rates: Sequence[float]

    def cells(self, contestant: Contestant) -> list[Cell]:
        return list(itertools.product(self.rates, contestant.values))

    def settings(self) -> list[Setting]:
        return [contestant.setting(cell) for contestant in self.contestants for cell in self.cells(contestant)]

    def stages(self, size: Size, read: Callable[[], Found]) -> Stages:
        """All cells with the tuning seed; then the chosen ones with the others."""
        yield self.settings(), [TUNING_SEED]
        yield [each.setting(cell) for each, (cell, _) in self.chosen(read()).items()], size.seeds

    def tuned(self, found: Found, contestant: Contestant) -> dict[Cell, list[Run]]:
        """The tuning seed's runs."""
        runs = {cell: found[contestant.setting(cell).name] for cell in self.cells(contestant)}
        tuned = {cell: [run for run in all_of if run.seed == TUNING_SEED] for cell, all_of in runs.items()}
        return {cell: mine for cell, mine in tuned.items() if mine}

    def chosen(self, found: Found) -> dict[Contestant, tuple[Cell, bool]]:
        """The cell of each that was judged, and whether it did not collapse."""
        choices = {contestant: choose(self.tuned(found, contestant)) for contestant in self.contestants}
        return {contestant: choice for contestant, choice in choices.items() if choice is not None}

    def rows(self, found: Found) -> list[tuple[Row, Line]]:
        """Each contestant at its chosen cell, with fresh seeds, beside the first; and its line of a picture."""
        rows: list[tuple[Row, Line]] = []
        first = self.contestants[0]
        for (each, (cell, free)), look in zip(self.chosen(found).items(), LOOKS, strict=False):
            edges = (("learning rate", self.rates, cell[0]), ("knob", each.values, cell[1]))
            edge = ", ".join(name for name, values, chosen in edges if chosen in (values[0], values[-1])) or "no"
            said, runs = each.said(cell[1]), [r for r in found[each.setting(cell).name] if r.seed != TUNING_SEED]
            labels = [each.title, f"{cell[0]:g}", f"{said}{'' if free else ', all collapsed'}", edge]
            line = Line(label=f"{each.title}, {said}", runs=runs, **look)
            against = first.title if each is not first else ""
            rows += [(Row(cells=labels, name=each.title, runs=runs, against=against), line)] if runs else []
        return rows

    def table(self, found: Found) -> list[str]:
        """The evaluator and KL at the end of each cell's tuning run."""
        rows = []
        for contestant, (chosen, _) in self.chosen(found).items():
            runs = self.tuned(found, contestant)
            for value in contestant.values:
                row = [f"{contestant.title}, {contestant.said(value)}"]
                for cell in ((rate, value) for rate in self.rates):
                    ends = [format_number(run.last(f"eval/{n}"), 2) for n in ("evaluator", "kl")
                            for run in runs.get(cell, [])]  # fmt: skip
                    text = "{} ({})".format(*ends) if ends else "–"
                    text += " collapsed" if any(map(collapsed, runs.get(cell, []))) else ""
                    row.append(f"**{text}**" if cell == chosen else text)
                rows.append(row)
        return table(["tuning, seed 0: evaluator (KL) at the end", *(f"learning rate {r:g}" for r in self.rates)], rows)
