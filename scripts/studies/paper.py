"""APA beside PPO and AWR, tuned alike, and what the runs say about the paper's four claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from apa_cli.errors import UserError
from apa_cli.runs.figures import frontier
from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Setting as End
from studies import draw, measures
from studies.compare import count, mean
from studies.draw import COLOURS, Line, Panel
from studies.measures import CONTRADICTED, SUPPORTED, UNDECIDED, Difference, Measure
from studies.page import DETAILS, table
from studies.runs import Found, Setting, Size, Stages
from studies.tuning import TUNING_SEED, Contestant, Grid

TITLE = "APA beside PPO and AWR, tuned alike: the paper's four claims (docs/results.md)"
DURATION = "60 runs, 35 to 45 minutes on two CPU cores"
PAGE = "docs/results.md"
SEEDS, QUICK_SEEDS = 5, 2
KNOBS = {"apa": ("λ", "kl_lambda", (0.1, 0.3, 1.0)), "ppo": ("β", "kl_coef", (0.02, 0.05, 0.2)),
         "awr": ("λ", "kl_lambda", (0.5, 1.0, 2.0))}  # fmt: skip
RATES, REWARDS = (3e-5, 1e-4, 3e-4), (1.0, 1.5)
KL_LEVELS = (2.0, 5.0, 10.0)  # nats per response
CLAIMS = {
    "a": ("Reward at equal KL", "at the same KL from the initial policy, APA earns more of the evaluator's reward."),
    "b": ("KL over training", "APA stays closer to the initial policy, and moves away from it more steadily."),
    "c": ("Collapse", "APA keeps more entropy and more different responses."),
    "d": ("Reward per rollout", "APA reaches a higher reward with the same number of sampled responses."),
}


RULE = (
    f"{measures.HALF} (Student's t). A difference is APA's value minus the rival's with the same seed. A claim is "
    f"*{SUPPORTED}* if the interval of these differences is entirely on its side of zero, *{CONTRADICTED}* if it is "
    f"entirely on the other side, and otherwise *{UNDECIDED}*. KL is the k1 estimate, in nats per response."
)
CHOICE = (
    "Rule, fixed before the runs: of the tuning grid (one seed, the same learning rates for every objective), the "
    "setting with the highest evaluator reward at the end that did not collapse. Collapsed means an entropy below "
    f"{measures.COLLAPSED_ENTROPY:g} of its initial value, or fewer than {measures.COLLAPSED_UNIQUE:.0%} different "
    "responses. Everything else on this page is judged on fresh seeds."
)
LIMITS = (
    "One task and one policy: the results say nothing about other models, prompts or rewards.",
    "The separate evaluator is a proxy too: it does not replace human judgement.",
    "Settings were chosen with one seed from a small grid. Fresh seeds keep that luck out of the figures, not out of "
    "the choice. Knobs of different objectives have no common scale.",
    "Reward at equal KL is interpolated linearly between two evaluations, at the first crossing. Seeds that do not "
    "reach a level are left out there, and only pairs in which both reach it are compared.",
    "Less KL is not better in itself: read (b) together with (a).",
)


CONTESTANTS = [
    Contestant(title=objective.upper(), stem=objective, knob=knob, key=f"objective.{key}", values=values, colour=colour,
               recipe=f"reviews_{objective}", keys={"objective.kl_target": None})
    for (objective, (knob, key, values)), colour in zip(KNOBS.items(), COLOURS, strict=False)
]  # fmt: skip
GRID = Grid(contestants=CONTESTANTS, rates=RATES)
QUICK = Grid(contestants=[replace(c, values=c.values[:2]) for c in CONTESTANTS], rates=RATES[1:2])


def grid(size: Size) -> Grid:
    return QUICK if size.quick else GRID


def settings(size: Size) -> list[Setting]:
    return grid(size).settings()


def seeds_of_others(size: Size) -> Sequence[int]:
    """Of the knobs that were not chosen: they show the trade-off, and no claim rests on them."""
    return size.seeds[: max(2, len(size.seeds) - 2)]


def planned(size: Size) -> int:
    values = [len(each.values) for each in grid(size).contestants]
    return len(settings(size)) + sum(len(size.seeds) + (n - 1) * len(seeds_of_others(size)) for n in values)


def stages(size: Size, read: Callable[[], Found]) -> Stages:
    """Tune each objective on one seed; then the chosen settings with fresh seeds, and their other knobs with fewer."""
    yield settings(size), [TUNING_SEED]
    chosen = {each: cell for each, (cell, _) in grid(size).chosen(read()).items()}
    yield [each.setting(cell) for each, cell in chosen.items()], size.seeds
    others = [(each, (rate, v)) for each, (rate, value) in chosen.items() for v in each.values if v != value]
    yield [each.setting(cell) for each, cell in others], seeds_of_others(size)


def claims() -> list[Measure]:
    """What the paper's four claims come down to here."""

    def last(name: str) -> Callable[[Run], float | None]:
        return lambda run: run.last(f"eval/{name}")

    found = [
        *(("a", f"evaluator reward at {level:g} nats", f"at {level:g} nats", "", 2, 1,
           partial(measures.reward_at_kl, level=level)) for level in KL_LEVELS),
        ("b", "KL at the end", "at the end", " nats", 2, -1, partial(measures.tail, name="kl/to_init", part=10)),
        ("b", "back-and-forth of KL", "back-and-forth", " nats", 3, -1, measures.back_and_forth),
        ("c", "entropy at the end", "entropy", " nats", 3, 1, last("entropy")),
        ("c", "different responses at the end", "different responses", "", 3, 1, last("unique_fraction")),
        ("c", "distinct-2 at the end", "distinct-2", "", 3, 1, last("distinct_2")),
        ("d", "evaluator reward, mean over training", "mean over training", "", 2, 1, measures.over_training),
        *(("d", f"responses sampled until evaluator reward {level:g}", f"until {level:g}", " responses", 0, -1,
           partial(measures.cost_until, level=level)) for level in REWARDS),
    ]  # fmt: skip
    names = ("claim", "name", "short", "unit", "digits", "direction", "of")
    return [Measure(**dict(zip(names, each, strict=True))) for each in found]  # type: ignore[arg-type]


def lines(found: Found, size: Size, pictures: Path) -> list[str]:
    """Raises UserError where an objective has no run of the chosen setting with a fresh seed."""
    cells = grid(size)
    chosen = cells.chosen(found)
    tuned = {each: cells.fresh(found, each, cell) for each, (cell, _) in chosen.items()}
    if lacking := [each.title for each in cells.contestants if not tuned.get(each)]:
        raise UserError(", ".join(lacking), "no finished run of the chosen setting with a fresh seed", "run them")
    ours, *rivals = ((each.title, runs) for each, runs in tuned.items())
    differences = [measures.compare(ours, rival, each) for each in claims() for rival in rivals]
    listed = {v: [f"- ({d.measure.claim}) {d.sentence()}" for d in differences if d.verdict == v] or ["- nothing"]
              for v in (CONTRADICTED, SUPPORTED, UNDECIDED)}  # fmt: skip
    drawn = [Line(label=f"{each.title}, {each.said(chosen[each][0][1])}", colour=each.colour, runs=runs)
             for each, runs in tuned.items()]  # fmt: skip
    said = [_setup(ours[1][0]), "", RULE, "", "## In short", ""]
    said += [*(_short(claim, differences, [name for name, _ in rivals]) for claim in CLAIMS)]
    for verdict in (CONTRADICTED, SUPPORTED):
        said += ["", f"{verdict.capitalize()}:", "", *listed[verdict]]
    undecided = sum(d.verdict == UNDECIDED for d in differences)
    said += ["", f"{undecided} of {len(differences)} comparisons are {UNDECIDED}; the table below has their figures."]
    said += ["", "## How the settings were chosen", "", CHOICE, "", *_choices(cells, found, tuned), ""]
    said += ["## Figures", "", *_claims(tuned, differences), ""]
    said += ["At the end of training, for each KL knob at the chosen learning rate:", ""]
    said += [*_knobs(cells, found, pictures), "", *_curves(drawn, pictures), ""]
    said += ["## Limits", "", *_limits(list(tuned.values()), len(differences))]
    said += ["", DETAILS, "## The tuning grid", "", *table(*cells.table(found)), ""]
    return [*said, f"## Comparisons that are {UNDECIDED}", "", *listed[UNDECIDED]]


def _setup(run: Run) -> str:
    """What is trained, on whose reward and before which judge."""
    config = run.config
    places = ("evaluation.reward", "reward")
    judge, reward = (config.get(f"{name}.function") or config.get(f"{name}.path") for name in places)
    recipes = ", ".join(f"`{each.recipe}`" for each in CONTESTANTS)
    return (
        f"Recipes {recipes}: the policy `{config.get('policy.path')}` is rewarded by `{reward}` and judged on "
        f"{config.get('evaluation.prompts')} held-out prompts by `{judge}`, which training never sees."
    )


def _short(claim: str, differences: Sequence[Difference], rivals: Sequence[str]) -> str:
    """Where it holds against whom."""
    title, statement = CLAIMS[claim]
    parts = [f"- **({claim}) {title}.** Claim: {statement}"]
    for name in rivals:
        of = [d for d in differences if d.measure.claim == claim and d.theirs == name]
        groups = {v: [d.measure.short for d in of if d.verdict == v] for v in (SUPPORTED, CONTRADICTED, UNDECIDED)}
        told = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups.items() if names)
        parts.append(f"Against {name}: {told}.")
    return " ".join(parts)


def _choices(cells: Grid, found: Found, tuned: Mapping[Contestant, Sequence[Run]]) -> list[str]:
    columns = {"evaluator": mean("eval/evaluator"), "KL": mean("eval/kl"), "seeds": _seeds}
    rows, collapsed = [], []
    for each, (cell, free) in cells.chosen(found).items():
        edges = (("learning rate", cells.rates, cell[0]), ("knob", each.values, cell[1]))
        edge = ", ".join(name for name, values, value in edges if value in (values[0], values[-1])) or "no"
        tried = [run for runs in cells.tuned(found, each).values() for run in runs]
        row = [each.title, f"{cell[0]:g}", each.said(cell[1]), edge]
        row += [mean("eval/evaluator")(cells.tuned(found, each)[cell])]
        rows.append([*row, *(column(tuned[each]) for column in columns.values()), count(measures.collapsed)(tried)])
        collapsed += (
            [] if free else ["", f"Every {each.title} setting of the grid collapsed; the best of them was taken."]
        )
    header = ["", "learning rate", "knob", "at the edge of the grid", "evaluator, tuning seed"]
    return [*table([*header, *columns, "collapsed, tuning grid"], rows), *collapsed]


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.seed) for run in runs)


def _claims(tuned: Mapping[Contestant, Sequence[Run]], differences: Sequence[Difference]) -> list[str]:
    ours, *rivals = (each.title for each in tuned)
    rows = []
    for what in claims():
        row = [f"({what.claim}) {what.name}{', nats' if what.unit == ' nats' else ''}"]
        row += [measures.shown(runs, what.of, what.digits) for runs in tuned.values()]
        beside = [d for d in differences if d.measure.name == what.name]
        rows.append([*row, *(f"{measures.spread(d.value, what.digits)}: {d.verdict}" for d in beside)])
    return table(["", *(each.title for each in tuned), *(f"{ours} − {rival}" for rival in rivals)], rows)


def _knobs(cells: Grid, found: Found, pictures: Path) -> list[str]:
    columns = {"seeds": _seeds, "KL": mean("eval/kl"), "evaluator": mean("eval/evaluator"),
               "training reward": mean("eval/reward"), "collapsed": count(measures.collapsed)}  # fmt: skip
    rows, ends = [], []
    for each, (cell, _) in cells.chosen(found).items():
        for value in each.values:
            if runs := cells.fresh(found, each, (cell[0], value)):
                rows.append([each.title, each.said(value), *(column(runs) for column in columns.values())])
                ends.append(End(line=each.title, knob=each.said(value), runs=tuple(runs)))
    picture = draw.save(frontier(ends), pictures / "results_frontier.png", "Reward against KL at the end")
    return [*table(["", "knob", *columns], rows), "", picture]


def _curves(lines: Sequence[Line], pictures: Path) -> list[str]:
    def over_training(metric: str, title: str, unit: str) -> Panel:
        return Panel(title=title, of=partial(measures.points, x="iteration", y=metric), lines=lines, y=unit)

    made = {
        "Separate evaluator against KL": ("reward_kl", [
            Panel(title="Tuned settings", of=measures.reward_over_kl, lines=lines, x=draw.KL, y=draw.EVALUATOR)]),
        "KL over training": ("kl", [over_training("kl/to_init", "KL from the initial policy", "nats per response")]),
        "Collapse": ("collapse", [
            over_training("policy/entropy", "Entropy", "nats per token"),
            over_training("policy/unique_fraction", "Different responses", "fraction of a rollout"),
            over_training("policy/distinct_2", "Distinct-2", "different bigrams / bigrams")]),
        "Reward per rollout": ("rollouts", [
            Panel(title="Separate evaluator", of=measures.reward_over_rollouts, lines=lines, x="sampled responses",
                  y=draw.EVALUATOR, levels=REWARDS)]),
    }  # fmt: skip
    return [draw.curves(pictures / f"results_{name}.png", alt, panels) for alt, (name, panels) in made.items()]


def _limits(tuned: Sequence[Sequence[Run]], comparisons: int) -> list[str]:
    """With what differs between the recipes besides what is tuned, or says which run it is."""
    runs = [mine[0] for mine in tuned]
    ours = ("seed", "output_dir", "optimizer.learning_rate", "tracking.")
    ours += tuple(f"objective.{name}" for name in ("name", "kl_lambda", "kl_coef", "kl_target"))
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith(ours))
    other = [key for key in keys if len({str(run.config.get(key)) for run in runs}) > 1]
    words = [f"`{key}` ({', '.join(f'{r.objective} {r.config.get(key)}' for r in runs)})" for key in other]
    chance = (
        f"At least {min(map(len, tuned))} seeds per setting, and {comparisons} comparisons at 95 % each, without "
        f"correction: if all true differences were zero, about {comparisons / 20:.1g} of them would still be called "
        "supported or contradicted."
    )
    differ = f"Besides the objective, learning rate and knob, the recipes differ in: {'; '.join(words)}."
    return [f"- {line}" for line in (*LIMITS[:2], chance, *LIMITS[2:], *([differ] if words else []))]
