"""What a run comes to, and one setting's runs beside another's: means, 95 % intervals, differences paired by seed."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Estimate, estimate
from apa_cli.runs.tables import spread

COLLAPSED_ENTROPY = 0.5  # of what it was before training
COLLAPSED_UNIQUE = 0.9  # fraction of different responses
HALF = "± is half the width of a 95 % interval over seeds"

Points = list[tuple[float, float]]
Of = Callable[[Run], float | None]
OfPoints = Callable[[Run], Points]
Named = tuple[str, Sequence[Run]]  # what a sentence calls the runs
Cell = TypeVar("Cell", bound=Hashable)


def points(run: Run, x: str, y: str, scale: float = 1.0) -> Points:
    """Two metrics of the rows that have both, in the order of training."""
    rows = [(row.get(x), row.get(y)) for row in run.rows]
    return [(scale * a, b) for a, b in rows if a is not None and b is not None]


def reward_over_kl(run: Run) -> Points:
    return points(run, "eval/kl", "eval/evaluator")


def reward_over_rollouts(run: Run) -> Points:
    """(responses sampled so far, evaluator)."""
    return points(run, "iteration", "eval/evaluator", float(run.config.get("rollout.batch_size", 1)))


def reward_at_kl(run: Run, level: float) -> float | None:
    return at_level(reward_over_kl(run), level)


def cost_until(run: Run, level: float) -> float | None:
    """Responses sampled until the evaluator first comes to `level`."""
    return at_level([(reward, spent) for spent, reward in reward_over_rollouts(run)], level)


def at_level(line: Points, level: float) -> float | None:
    """y where x first comes to `level`, on the straight line between two points; None where x never does."""
    if line and line[0][0] >= level:
        return line[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        if x0 < level <= x1:
            return y0 + (y1 - y0) * (level - x0) / (x1 - x0)
    return None


def over_training(run: Run) -> float | None:
    """The evaluator's mean over training: the area under its line, divided by the width."""
    line = reward_over_rollouts(run)
    if len(line) < 2:
        return None
    area = math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(line))
    return area / (line[-1][0] - line[0][0])


def between(run: Run, name: str, first: int, last: int) -> float | None:
    """Mean of a metric over the iterations first to last that have it."""
    values = [y for x, y in points(run, "iteration", name) if first <= x <= last]
    return math.fsum(values) / len(values) if values else None


def tail(run: Run, name: str, part: int = 3) -> float | None:
    """Mean of a metric over the last third (or other part) of training: less noisy than the last value alone."""
    return between(run, name, run.iterations * (part - 1) // part + 1, run.iterations)


def typical(run: Run, name: str) -> float | None:
    """The median over iterations: a busy machine makes some of them slow."""
    values = [y for _, y in points(run, "iteration", name)]
    return statistics.median(values) if values else None


def back_and_forth(run: Run) -> float | None:
    """Mean step of KL from rollout to rollout beyond what the net change needs; 0 where KL only rises."""
    values = [y for _, y in points(run, "iteration", "kl/to_init")]
    if len(values) < 2:
        return None
    steps = [after - before for before, after in itertools.pairwise(values)]
    return (math.fsum(map(abs, steps)) - abs(values[-1] - values[0])) / len(steps)


def collapsed(run: Run) -> bool:
    """Entropy under half of its first value, or a tenth of the responses repeated. Unmeasured counts as collapsed."""
    first, last, unique = run.first("eval/entropy"), run.last("eval/entropy"), run.last("eval/unique_fraction")
    if first is None or last is None or unique is None:
        return True
    return last < COLLAPSED_ENTROPY * first or unique < COLLAPSED_UNIQUE


def choose(cells: Mapping[Cell, Sequence[Run]]) -> tuple[Cell, bool] | None:
    """The cell with the highest evaluator reward at the end among those that did not collapse, else among all; and
    whether it did not. A cell with a collapsed run has collapsed. None where no run was judged."""
    means = {cell: value.mean for cell, runs in cells.items() if (value := final(runs, "eval/evaluator"))}
    free = [cell for cell in means if not any(map(collapsed, cells[cell]))]
    return (max(free or means, key=means.__getitem__), bool(free)) if means else None


def final(runs: Iterable[Run], name: str) -> Estimate | None:
    """Over seeds, of the newest evaluation."""
    return estimate(run.last(name) for run in runs)


def shown(runs: Sequence[Run], of: Of | str, digits: int = 2) -> str:
    """Mean ± half of the interval, and how many seeds it is over where not all have it. A name: at the end."""
    value = estimate(run.last(of) if isinstance(of, str) else of(run) for run in runs)
    return spread(value, digits) + (
        "" if value is None or value.count == len(runs) else f" ({value.count} of {len(runs)})"
    )


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a run."""

    name: str
    of: Of
    digits: int = 2
    short: str = ""  # its name in short answers


LAST_THIRD = Measure(name="evaluator, last third", of=partial(tail, name="eval/evaluator"))
CPU = Measure(name="CPU seconds per iteration", of=partial(typical, name="time/cpu"))
OVER_TRAINING = Measure(name="evaluator, mean over training", of=over_training)


def common_level(*groups: Sequence[Run]) -> float | None:
    """The highest half nat of KL that an evaluation of every run comes to; None where there is no such."""
    highest = [max((kl for kl, _ in reward_over_kl(run)), default=0.0) for runs in groups for run in runs]
    level = math.floor(2 * min(highest, default=0.0)) / 2
    return level if level > 0 else None


def at_common_kl(*groups: Sequence[Run], low: float = 0.0) -> list[Measure]:
    """The evaluator at the highest level in common; before it at `low` nats, which every run passes early."""

    def at(level: float, short: str) -> Measure:
        return Measure(name=f"evaluator at {level:g} nats", of=partial(reward_at_kl, level=level), short=short)

    level = common_level(*groups) or 0.0
    early = [at(low, "")] if 0 < low < level else []
    return [*early, at(level, "evaluator at equal KL")] if level else []


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Ours minus theirs, over the seeds where both have the measure."""

    measure: Measure
    ours: str
    theirs: str
    value: Estimate | None

    @property
    def judged(self) -> bool:
        """Whether there is an interval."""
        return self.value is not None and self.value.half is not None

    @property
    def sign(self) -> int:
        """Which side of zero the interval lies on; 0 where it holds zero, or there is none."""
        if self.value is None or self.value.half is None or abs(self.value.mean) <= self.value.half:
            return 0
        return 1 if self.value.mean > 0 else -1

    def sentence(self) -> str:
        value, digits, ours, theirs = self.value, self.measure.digits, self.ours, self.theirs
        if value is None or value.half is None:
            said = f"fewer than two seeds in which {ours} and {theirs} both reach it"
        elif value.lowest == value.highest == 0:
            said = f"the same for {ours} and {theirs} over {value.count} pairs of seeds"
        else:
            half = f"{value.half:.{digits}f} over {value.count} pairs of seeds"
            way = "higher" if self.sign > 0 else "lower"
            said = f"{ours} is {way} than {theirs} by {abs(value.mean):.{digits}f} ± {half}"
            said = said if self.sign else f"{ours} − {theirs} = {value.mean:+.{digits}f} ± {half}"
        return f"{self.measure.name}: {said}."


def compare(ours: Named, theirs: Named, measure: Measure) -> Difference:
    """Paired over seeds: seeds that only one of them has, or where the measure is missing, are left out."""
    mine, other = (
        {run.seed: value for run in runs if (value := measure.of(run)) is not None} for _, runs in (ours, theirs)
    )
    value = estimate(mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys()))
    return Difference(measure=measure, ours=ours[0], theirs=theirs[0], value=value)
