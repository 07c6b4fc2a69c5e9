"""One objective beside others: settings chosen by one rule, and differences paired over seeds. Imports no torch.

A claim is a measure and a direction. It is supported where the 95 % interval of the paired differences lies wholly on
its side of zero, contradicted where it lies wholly on the other, and otherwise not decided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Estimate, Setting, estimate, knob

ORDER = ("apa", "ppo", "awr")
KL_LEVELS = (2.0, 5.0, 10.0)  # nats per response
COLLAPSED_ENTROPY = 0.5  # of what it was before training
COLLAPSED_UNIQUE = 0.9  # fraction of different responses
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "not decided by these runs"

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a run, and which way the claim about it points."""

    claim: str  # a, b, c or d
    name: str
    short: str  # within its claim
    unit: str
    digits: int
    direction: int  # 1: the claim is that ours is higher; -1: lower
    of: Callable[[Run], float | None]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Ours minus theirs, over the seeds where both have the measure."""

    measure: Measure
    ours: str
    theirs: str
    value: Estimate | None

    @property
    def verdict(self) -> str:
        if self.value is None or self.value.half is None or abs(self.value.mean) <= self.value.half:
            return UNDECIDED
        return SUPPORTED if self.value.mean * self.measure.direction > 0 else CONTRADICTED

    def sentence(self) -> str:
        """What was measured; the verdict stands beside it."""
        measure, value = self.measure, self.value
        if value is None or value.half is None:
            return f"{measure.name}: fewer than two seeds in which {self.ours} and {self.theirs} both reach it."
        pairs = f"over {value.count} pairs of seeds"
        if value.lowest == value.highest == 0:
            return f"{measure.name}: the same for {self.ours} and {self.theirs} {pairs}."
        half = f"{value.half:.{measure.digits}f}{measure.unit}"
        if self.verdict == UNDECIDED:
            return f"{measure.name}: {self.ours} − {self.theirs} = {value.mean:+.{measure.digits}f} ± {half} {pairs}."
        than = f"{'higher' if value.mean > 0 else 'lower'} than {self.theirs}"
        return f"{measure.name}: {self.ours} is {than} by {abs(value.mean):.{measure.digits}f} ± {half} {pairs}."


@dataclass(frozen=True, kw_only=True)
class Choice:
    setting: Setting
    collapse_free: bool  # False: every run of the grid collapsed, and this is the best of them all


def measures(reward_levels: Sequence[float] = ()) -> list[Measure]:
    """What the paper's four claims come down to here."""
    found = [
        Measure(claim="a", name=f"evaluator reward at {level:g} nats", short=f"at {level:g} nats", unit="", digits=2,
                direction=1, of=partial(reward_at_kl, level=level))
        for level in KL_LEVELS
    ]  # fmt: skip
    found += [
        Measure(claim="b", name="KL at the end", short="at the end", unit=" nats", digits=2, direction=-1, of=last_kl),
        Measure(claim="b", name="back-and-forth of KL", short="back-and-forth", unit=" nats", digits=3, direction=-1,
                of=back_and_forth),
        Measure(claim="c", name="entropy at the end", short="entropy", unit=" nats", digits=3, direction=1,
                of=lambda run: run.last("eval/entropy")),
        Measure(claim="c", name="different responses at the end", short="different responses", unit="", digits=3,
                direction=1, of=lambda run: run.last("eval/unique_fraction")),
        Measure(claim="c", name="distinct-2 at the end", short="distinct-2", unit="", digits=3, direction=1,
                of=lambda run: run.last("eval/distinct_2")),
        Measure(claim="d", name="evaluator reward, mean over training", short="mean over training", unit="", digits=2,
                direction=1, of=lambda run: mean_height(reward_over_rollouts(run))),
    ]  # fmt: skip
    found += [
        Measure(claim="d", name=f"responses sampled until evaluator reward {level:g}", short=f"until {level:g}",
                digits=0, unit=" responses", direction=-1, of=partial(rollouts_until, level=level))
        for level in reward_levels
    ]  # fmt: skip
    return found


def reward_over_kl(run: Run) -> Points:
    """(KL, evaluator) of the run's evaluations in their order."""
    return [(kl, reward) for _, kl, reward in _evaluations(run)]


def reward_over_rollouts(run: Run) -> Points:
    """(responses sampled so far, evaluator) of the run's evaluations."""
    size = float(run.config.get("rollout.batch_size", 1))
    return [(iteration * size, reward) for iteration, _, reward in _evaluations(run)]


def reward_at_kl(run: Run, level: float) -> float | None:
    return at_level(reward_over_kl(run), level)


def rollouts_until(run: Run, level: float) -> float | None:
    return at_level([(reward, rollouts) for rollouts, reward in reward_over_rollouts(run)], level)


def at_level(points: Points, level: float) -> float | None:
    """y where x first comes to `level`, on the straight line between two points; None where x never does."""
    if points and points[0][0] >= level:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < level <= x1:
            return y0 + (y1 - y0) * (level - x0) / (x1 - x0)
    return None


def mean_height(points: Points) -> float | None:
    """Area under the points divided by its width."""
    if len(points) < 2:
        return None
    area = math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
    return area / (points[-1][0] - points[0][0])


def last_kl(run: Run) -> float | None:
    """Mean KL of the last tenth of the rollouts: one alone is noisy."""
    values = rollout_kl(run)
    tail = values[-max(1, len(values) // 10) :]
    return math.fsum(tail) / len(tail) if tail else None


def back_and_forth(run: Run) -> float | None:
    """Mean step of KL from rollout to rollout beyond what the net change needs; 0 where KL only rises."""
    values = rollout_kl(run)
    if len(values) < 2:
        return None
    steps = [after - before for before, after in itertools.pairwise(values)]
    return (math.fsum(map(abs, steps)) - abs(values[-1] - values[0])) / len(steps)


def rollout_kl(run: Run) -> list[float]:
    return [kl for row in run.rows if (kl := row.get("kl/to_init")) is not None]


def collapsed(run: Run) -> bool:
    """Entropy under half of its first value, or a tenth of the responses repeated. Unmeasured counts as collapsed."""
    first, last, unique = run.first("eval/entropy"), run.last("eval/entropy"), run.last("eval/unique_fraction")
    if first is None or last is None or unique is None:
        return True
    return last < COLLAPSED_ENTROPY * first or unique < COLLAPSED_UNIQUE


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Runs of one objective, learning rate and KL knob together; in the order of these three."""
    found: dict[tuple[int, float, float, str], list[Run]] = {}
    for run in runs:
        found.setdefault((ORDER.index(run.objective), learning_rate(run), *knob(run.config)), []).append(run)
    return [Setting(line=ORDER[key[0]].upper(), knob=key[3], runs=tuple(found[key])) for key in sorted(found)]


def learning_rate(run: Run) -> float:
    return float(run.config["optimizer.learning_rate"])


def choose(settings: Sequence[Setting]) -> Choice:
    """The setting with the highest evaluator reward at the end among those that did not collapse, else among all.

    A setting with a collapsed run has collapsed. Raises ValueError where no setting was judged.
    """
    judged = [(value.mean, setting) for setting in settings if (value := setting.final("eval/evaluator"))]
    free = [pair for pair in judged if not any(map(collapsed, pair[1].counted))]
    if not judged:
        raise ValueError("no run was judged by a separate evaluator")
    return Choice(setting=max(free or judged, key=lambda pair: pair[0])[1], collapse_free=bool(free))


def compare(ours: Setting, theirs: Setting, measure: Measure) -> Difference:
    """Paired over seeds: seeds that only one of them has, or where the measure is missing, are left out."""
    mine, other = by_seed(ours, measure), by_seed(theirs, measure)
    differences = [mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())]
    return Difference(measure=measure, ours=ours.line, theirs=theirs.line, value=estimate(differences))


def by_seed(setting: Setting, measure: Measure) -> Mapping[int, float]:
    values = {int(run.seed): measure.of(run) for run in setting.counted}
    return {seed: value for seed, value in values.items() if value is not None}


def _evaluations(run: Run) -> list[tuple[float, float, float]]:
    """(iteration, KL, evaluator)."""
    rows = [(row.get("iteration"), row.get("eval/kl"), row.get("eval/evaluator")) for row in run.rows]
    return [(i, kl, reward) for i, kl, reward in rows if i is not None and kl is not None and reward is not None]
