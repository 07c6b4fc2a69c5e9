"""Offline: APA and AWR on the built-in task's logged pairs, beside the initial policy and each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Estimate, estimate
from apa_cli.runs.tables import spread
from apa_cli.tracking.pages import format_number
from apa_cli.tracking.style import BLUE, GREEN, ORANGE, new_figure, tidy
from studies.beside import at_kl, common_level, draw_reward_over_kl, measure, paired, same, save, tail
from studies.comparison import Difference
from studies.page import table
from studies.runs import Found, Setting, Size

TITLE = "APA and AWR on logged pairs, without sampling in the loop"
DURATION = "18 runs, about 20 minutes on two CPU cores"
LAMBDAS: Mapping[str, tuple[float, ...]] = {"apa": (0.2, 0.3, 1.0), "awr": (0.3, 0.5, 1.0)}
COLOURS = (BLUE, ORANGE, GREEN)
LOW = 0.5  # nats: a level that every run passes early


def setting(objective: str, kl_lambda: float, iterations: int = 60) -> Setting:
    """The critic alone learns in the first 10 iterations, of few in the first sixth."""
    name = f"{objective}_offline_lambda{kl_lambda:g}"
    keys = {"objective.kl_lambda": kl_lambda, "value.warmup_iterations": min(10, iterations // 6)}
    return Setting(name=name, recipe=f"reviews_{objective}_offline", keys=keys)


def settings(size: Size) -> list[Setting]:
    chosen = {name: lambdas[1:2] if size.quick else lambdas for name, lambdas in LAMBDAS.items()}
    cells = [(objective, kl_lambda) for objective, lambdas in chosen.items() for kl_lambda in lambdas]
    return [setting(*cell, size.iterations) for cell in cells]


def gain(run: Run) -> float | None:
    """Evaluator over the last third of training less that of the policy that training started from."""
    before, after = run.first("eval/evaluator"), tail(run, "eval/evaluator")
    return None if before is None or after is None else after - before


def best(runs: Found, objective: str) -> float | None:
    """The λ with the largest gain, a mean over seeds; None where nothing was judged."""
    gains = {
        kl_lambda: value.mean
        for kl_lambda in LAMBDAS[objective]
        if (value := estimate(gain(run) for run in runs[setting(objective, kl_lambda).name])) is not None
    }
    return max(gains, key=lambda kl_lambda: gains[kl_lambda], default=None)


def lines(runs: Found, size: Size, pictures: Path) -> list[str]:
    rows, sentences, better, judged = [], [], 0, 0
    for objective, lambdas in LAMBDAS.items():
        for kl_lambda in lambdas:
            mine = runs[setting(objective, kl_lambda).name]
            if not mine:
                continue
            gained = estimate(gain(run) for run in mine)
            rows.append(_row(objective, kl_lambda, mine, gained))
            if gained is not None and gained.half is not None:
                judged += 1
                better += gained.mean > gained.half
    for difference in _apa_beside_awr(runs):
        sentences.append(f"- {difference.sentence()}{' No significant difference.' if same(difference) else ''}")
    header = ["objective", "λ", "evaluator before", "last third", "gain", "KL, last third", "entropy, last third",
              "different responses"]  # fmt: skip
    picture = draw(runs, pictures / "methods_offline.png")
    said = (
        "Learning from the pairs significantly raises the separate evaluator's reward above the initial policy's in "
        f"{better} of {judged} settings."
        if judged
        else "Too few seeds to say whether the pairs raise the evaluator's reward."
    )
    return [
        said,
        "",
        *sentences,
        "",
        f"![Evaluator against KL](images/{picture.name})",
        "",
        *table(header, rows),
        "",
        "APA and AWR are compared at the λ with the largest gain of each, and at a KL that all runs of both reach. "
        "Last third: means over the evaluations in the last third of training, which sample from the policy. ± is half "
        "the width of a 95 % interval over seeds; KL is in nats per response, entropy in nats per token.",
    ]


def _row(objective: str, kl_lambda: float, runs: Sequence[Run], gained: Estimate | None) -> list[str]:
    before = estimate(run.first("eval/evaluator") for run in runs)
    figures = [spread(estimate(tail(run, f"eval/{name}") for run in runs), 2) for name in ("kl", "entropy")]
    after = spread(estimate(tail(run, "eval/evaluator") for run in runs), 2)
    unique = estimate(run.last("eval/unique_fraction") for run in runs)
    diversity = format_number(unique.lowest if unique else None, 2)
    return [objective.upper(), f"{kl_lambda:g}", spread(before, 2), after, spread(gained, 2), *figures, diversity]


def _apa_beside_awr(runs: Found) -> list[Difference]:
    """At two levels of KL and over the last third, of the best λ of each; [] where one was not judged."""
    chosen = {objective: best(runs, objective) for objective in LAMBDAS}
    named = [
        (f"{objective.upper()} (λ {kl_lambda:g})", runs[setting(objective, kl_lambda).name])
        for objective, kl_lambda in chosen.items()
        if kl_lambda is not None
    ]
    if len(named) < len(LAMBDAS):
        return []
    ours, theirs = named
    top = common_level(ours[1], theirs[1])
    wanted = [at_kl(level) for level in (sorted({min(LOW, top), top}) if top else [])]
    wanted.append(measure("evaluator, last third", lambda run: tail(run, "eval/evaluator")))
    return [paired(ours, theirs, what) for what in wanted]


def draw(runs: Found, path: Path) -> Path:
    figure = new_figure(11, 4.4)
    for axes, (objective, lambdas) in zip(figure.subplots(1, len(LAMBDAS), sharex=True, sharey=True), LAMBDAS.items(),
                                          strict=True):  # fmt: skip
        for kl_lambda, colour in zip(lambdas, COLOURS, strict=True):
            if found := runs[setting(objective, kl_lambda).name]:
                draw_reward_over_kl(axes, found, f"λ {kl_lambda:g}", colour)
        tidy(axes, f"{objective.upper()}, logged pairs alone")
        axes.set_xlabel("KL from the initial policy, nats per response")
    figure.axes[0].set_ylabel("separate evaluator")
    return save(figure, path)
