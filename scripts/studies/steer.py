"""KL on target: targets of 2, 5 and 10 nats, from a λ far too high and one far too low, beside fixed λ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Estimate, estimate
from apa_cli.runs.tables import spread
from apa_cli.tracking.pages import format_number
from apa_cli.tracking.style import BLUE, GREEN, ORANGE, new_figure, tidy, whole_iterations
from studies.beside import save
from studies.comparison import reward_at_kl, rollout_kl
from studies.page import table
from studies.runs import Found, Setting, Size

TITLE = "KL steered to 2, 5 and 10 nats, and fixed λ to compare with"
DURATION = "36 runs, about 40 minutes of one CPU core"
RECIPE = "reviews_apa"
TARGETS = (2.0, 5.0, 10.0)
STARTS = {"too high": 3.0, "too low": 0.06}
FIXED = (0.06, 0.1, 0.2, 0.3, 0.6, 1.0)
TOLERANCE = 0.15
COLOURS = (BLUE, ORANGE, GREEN)


def steered(target: float, start: float) -> Setting:
    keys = {"objective.kl_target": target, "objective.kl_lambda": start}
    return Setting(name=f"apa_target{target:g}_from{start:g}", recipe=RECIPE, keys=keys)


def fixed(kl_lambda: float) -> Setting:
    return Setting(name=f"apa_lambda{kl_lambda:g}", recipe=RECIPE, keys={"objective.kl_lambda": kl_lambda})


def settings(size: Size) -> list[Setting]:
    targets, lambdas = (TARGETS[1:2], FIXED[1:2]) if size.quick else (TARGETS, FIXED)
    return [*(steered(*pair) for pair in itertools.product(targets, STARTS.values())), *map(fixed, lambdas)]


def held_kl(run: Run) -> float:
    """Mean KL of the rollouts of the last third."""
    kl = rollout_kl(run)
    last = kl[-max(1, len(kl) // 3) :]
    return math.fsum(last) / len(last)


def best_fixed(runs: Found, level: float, seeds: Sequence[int]) -> tuple[float, dict[int, float]] | None:
    """The fixed λ with the highest evaluator reward where its KL first comes to `level`, and that reward by seed.

    Only λ that every seed takes so far are compared; None where there is none.
    """
    found = {}
    for kl_lambda in FIXED:
        rewards = {run.seed: reward_at_kl(run, level) for run in runs[fixed(kl_lambda).name]}
        known = {seed: reward for seed, reward in rewards.items() if reward is not None}
        if set(known) == set(seeds):
            found[kl_lambda] = known
    if not found:
        return None
    return max(found.items(), key=lambda item: math.fsum(item[1].values()))


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    rows, within, compared, worse = [], 0, 0, 0
    for target, (way, start) in itertools.product(TARGETS, STARTS.items()):
        mine = runs[steered(target, start).name]
        if not mine:
            continue
        kl, reward = estimate(map(held_kl, mine)), estimate(run.last("eval/evaluator") for run in mine)
        level = estimate(run.last("eval/kl") for run in mine)
        assert kl is not None
        inside = abs(kl.mean / target - 1) <= TOLERANCE
        within += inside
        best = best_fixed(runs, level.mean, [run.seed for run in mine]) if level else None
        difference = _difference(mine, best[1]) if best else None
        if difference is not None:
            compared += 1
            worse += difference.mean + (difference.half or 0.0) < 0
        off = f"{kl.mean / target - 1:+.0%}{'' if inside else ' (out)'}"
        other = [spread(estimate(best[1].values()), 2), f"{best[0]:g}"] if best else ["–", "–"]
        last = [spread(difference, 2), format_number(_lowest_diversity(mine), 2)]
        own = [spread(kl, 2), off, spread(level, 2), spread(reward, 2)]
        rows.append([f"{target:g}", f"{start:g}, {way}", *own, *other, *last])
    header = ["target", "initial λ", "KL, last third", "deviation", "KL at the end", "evaluator",
              "evaluator, best fixed λ at that KL", "that λ", "difference", "different responses"]  # fmt: skip
    picture = draw(runs, pictures / "methods_steer.png")
    return [
        f"KL over the last third of training is within ±{TOLERANCE:.0%} of its target in {within} of {len(rows)} "
        "settings. At the same KL, the evaluator's reward at the end is significantly lower than with the best fixed λ "
        f"in {worse} of {compared} comparable settings. ± is half the width of a 95 % interval over seeds; KL is in "
        "nats per response.",
        "",
        *table(header, rows),
        "",
        f"![KL and λ over training](images/{picture.name})",
    ]  # fmt: skip


def _difference(mine: Sequence[Run], theirs: dict[int, float]) -> Estimate | None:
    """Steered less fixed, paired by seed."""
    rewards = [(run.last("eval/evaluator"), theirs[run.seed]) for run in mine]
    return estimate(ours - other for ours, other in rewards if ours is not None)


def _lowest_diversity(runs: Sequence[Run]) -> float | None:
    found = estimate(run.last("eval/unique_fraction") for run in runs)
    return found.lowest if found else None


def draw(runs: Found, path: Path) -> Path:
    """Every seed's KL and λ over training: one colour a target, dashed where λ began too low."""
    figure = new_figure(11.5, 4.4)
    left, right = figure.subplots(1, 2)
    for colour, target in zip(COLOURS, TARGETS, strict=True):
        for start, style in zip(STARTS.values(), ("-", "--"), strict=True):
            for i, run in enumerate(runs[steered(target, start).name]):
                label = f"{target:g} nats, from λ {start:g}" if i == 0 else None
                kl = rollout_kl(run)
                values = [row["objective/kl_lambda"] for row in run.rows if row.get("objective/kl_lambda") is not None]
                left.plot(range(1, len(kl) + 1), kl, color=colour, linestyle=style, linewidth=1, alpha=0.8, label=label)
                right.plot(range(1, len(values) + 1), values, color=colour, linestyle=style, linewidth=1, alpha=0.8)
        if left.lines and any(runs[steered(target, start).name] for start in STARTS.values()):
            left.axhspan(target * (1 - TOLERANCE), target * (1 + TOLERANCE), color=colour, alpha=0.12, linewidth=0)
    right.set_yscale("log")
    for axes, title, unit in ((left, "KL from the initial policy", "nats per response"), (right, "λ", "")):
        tidy(axes, title)
        axes.set_ylabel(unit)
        axes.set_xlabel("iteration")
        whole_iterations(axes)
    return save(figure, path)
