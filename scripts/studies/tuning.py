"""Objectives tuned by one rule on one seed, over the same learning rates and a KL knob of their own each.

Of the settings that did not collapse the one with the highest reward under the separate evaluator is chosen; it then
runs with fresh seeds, which alone are judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apa_cli.runs.folders import Run
from apa_cli.tracking.report import format_number
from studies.compare import Row
from studies.draw import Line
from studies.measures import choose, collapsed
from studies.runs import Found, Setting

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
    colour: str
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
    contestants: Sequence[Contestant]
    rates: Sequence[float]

    def cells(self, contestant: Contestant) -> list[Cell]:
        return list(itertools.product(self.rates, contestant.values))

    def settings(self) -> list[Setting]:
        return [contestant.setting(cell) for contestant in self.contestants for cell in self.cells(contestant)]

    def tuned(self, found: Found, contestant: Contestant) -> dict[Cell, list[Run]]:
        """The tuning seed's runs."""
        cells = {cell: self._of(found, contestant, cell, fresh=False) for cell in self.cells(contestant)}
        return {cell: runs for cell, runs in cells.items() if runs}

    def fresh(self, found: Found, contestant: Contestant, cell: Cell) -> list[Run]:
        return self._of(found, contestant, cell, fresh=True)

    def _of(self, found: Found, contestant: Contestant, cell: Cell, *, fresh: bool) -> list[Run]:
        return [run for run in found[contestant.setting(cell).name] if (run.seed != TUNING_SEED) == fresh]

    def chosen(self, found: Found) -> dict[Contestant, tuple[Cell, bool]]:
        """The cell of each that was judged, and whether it did not collapse."""
        choices = {contestant: choose(self.tuned(found, contestant)) for contestant in self.contestants}
        return {contestant: choice for contestant, choice in choices.items() if choice is not None}

    def tuned_rows(self, found: Found, baseline: str, styles: Sequence[str] = ("-",)) -> list[tuple[Row, Line]]:
        """Each contestant at its chosen cell, with fresh seeds, beside the baseline; and its line of a picture."""
        rows: list[tuple[Row, Line]] = []
        for each, ((rate, value), free) in self.chosen(found).items():
            edges = (("learning rate", self.rates, rate), ("knob", each.values, value))
            edge = ", ".join(name for name, values, chosen in edges if chosen in (values[0], values[-1])) or "no"
            said, runs = each.said(value), self.fresh(found, each, (rate, value))
            labels = [each.title, f"{rate:g}", f"{said}{'' if free else ', all collapsed'}", edge]
            style = styles[sum(line.colour == each.colour for _, line in rows) % len(styles)]
            line = Line(label=f"{each.title}, {said}", colour=each.colour, runs=runs, style=style)
            against = baseline if each.title != baseline else ""
            rows += [(Row(cells=labels, name=each.title, runs=runs, against=against), line)] if runs else []
        return rows

    def table(self, found: Found) -> tuple[list[str], list[list[str]]]:
        """The evaluator and KL at the end of each cell's tuning run."""
        chosen = self.chosen(found)
        header = ["tuning, seed 0: evaluator (KL) at the end", *(f"learning rate {rate:g}" for rate in self.rates)]
        rows = []
        for contestant in self.contestants:
            runs = self.tuned(found, contestant)
            for value in contestant.values if runs else ():
                row = [f"{contestant.title}, {contestant.said(value)}"]
                for cell in ((rate, value) for rate in self.rates):
                    numbers = [
                        format_number(runs[cell][0].last(f"eval/{n}"), 2) for n in ("evaluator", "kl") if cell in runs
                    ]
                    text = "{} ({})".format(*numbers) if numbers else "–"
                    text += " collapsed" if cell in runs and any(map(collapsed, runs[cell])) else ""
                    row.append(f"**{text}**" if contestant in chosen and chosen[contestant][0] == cell else text)
                rows.append(row)
        return header, rows
