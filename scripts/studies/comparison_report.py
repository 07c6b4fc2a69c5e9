"""The page about a comparison of APA with its rivals: every figure and every verdict computed from the runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from apa_cli.runs.folders import Run
from apa_cli.runs.settings import Estimate, Setting, estimate, setting_text
from apa_cli.runs.tables import spread
from apa_cli.tracking.pages import format_number, format_seconds
from studies.comparison import (
    COLLAPSED_ENTROPY,
    COLLAPSED_UNIQUE,
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Choice,
    Measure,
    by_seed,
    collapsed,
    compare,
    learning_rate,
)
from studies.comparison_figures import draw
from studies.comparison_study import OURS, Study
from studies.page import DETAILS, table, with_details

MARK = "<!-- written by scripts/reproduce_paper.py from the runs; changes by hand are lost -->"
CLAIMS = {
    "a": ("Reward at equal KL", "at the same KL from the initial policy, APA earns more of the evaluator's reward."),
    "b": ("KL over training", "APA stays closer to the initial policy, and moves away from it more steadily."),
    "c": ("Collapse", "APA keeps more entropy and more different responses."),
    "d": ("Reward per rollout", "APA reaches a higher reward with the same number of sampled responses."),
}
_JUDGE = "evaluation.reward"
_PICTURES = {"b": "kl", "c": "collapse", "d": "rollouts"}
# What is tuned, or says which run it is; whatever else differs between the recipes is told.
_EXPECTED = (
    "seed",
    "output_dir",
    "optimizer.learning_rate",
    *(f"objective.{k}" for k in ("name", "kl_lambda", "kl_coef", "kl_target")),
)


def write_results(study: Study, page: Path) -> Path:
    """The page, its pictures in images/ and its long tables in tables/ beside it."""
    tuned, levels = list(study.tuned.values()), study.experiment.reward_levels
    pictures = draw(page.parent / "images", tuned, study.knobs, stem=page.stem, reward_levels=levels)
    links = {name: Path(os.path.relpath(path, page.parent)).as_posix() for name, path in pictures.items()}
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(with_details(page, page.stem, results(study, links))) + "\n", "utf-8")
    return page


def results(study: Study, pictures: Mapping[str, str]) -> list[str]:
    lines = ["# APA compared with PPO and AWR", "", MARK, ""]
    if study.experiment.quick:
        lines += ["**A quick run, to see that the script works. Nothing on this page is evidence.**", ""]
    lines += [*_setup(study), "", "## In short", "", *_short(study), ""]
    lines += [f"![Separate evaluator against KL]({pictures['reward_kl']})", ""]
    lines += ["## What these runs do not support", "", *_unsupported(study), ""]
    lines += ["## What they support", "", *_listed(study, SUPPORTED), ""]
    lines += ["## How the settings were chosen", "", *_choices(study), ""]
    for claim, (title, statement) in CLAIMS.items():
        lines += [f"## ({claim}) {title}", "", f"Claim: {statement}", "", *_claim_table(study, claim), ""]
        if claim in _PICTURES:
            lines += [f"![{title}]({pictures[_PICTURES[claim]]})", ""]
        if claim == "a":
            lines += ["At the end of training, for each KL knob at the chosen learning rate:", "", *_knobs(study), ""]
        if claim == "c":
            lines += [*_collapse(study), ""]
    lines += ["## Limits", "", *_limits(study), "", DETAILS, "## The tuning grid", "", *_grid(study)]
    return [*lines, "", f"## Comparisons that are {UNDECIDED}", "", *_listed(study, UNDECIDED)]


def _setup(study: Study) -> list[str]:
    about, run = study.circumstances, study.tuned[OURS].runs[0]
    config = run.config
    judge, reward = (config.get(f"{name}.function") or config.get(f"{name}.path") for name in (_JUDGE, "reward"))
    recipes = ", ".join(f"`{Path(recipe).name}`" for recipe in study.experiment.recipes.values())
    seconds = sum(float(run.summary.get("seconds", 0)) for run in study.runs)
    lines = [
        f"Recipes {recipes}: the policy `{config.get('policy.path')}` is rewarded by `{reward}` and judged on "
        f"{config.get('evaluation.prompts')} held-out prompts by `{judge}`, which training never sees.",
        "",
        f"{len(study.runs)} runs ({study.experiment.size} planned), each {run.iterations} iterations of "
        f"{config.get('rollout.batch_size')} responses. {format_seconds(about['wall_seconds'])} of wall clock "
        f"({format_seconds(seconds)} of runs, {about['jobs']} at a time) on a machine with {about['cores']} cores "
        f"({about['machine']}); {_versions(study)}. Command: `{about['command']}`",
        "",
        "± is half the width of a 95 % interval over seeds (Student's t). A difference is APA's value minus the "
        f"rival's with the same seed. A claim is *{SUPPORTED}* if the interval of these differences is entirely on its "
        f"side of zero, *{CONTRADICTED}* if it is entirely on the other side, and otherwise *{UNDECIDED}*. KL is the "
        "k1 estimate, in nats per response.",
    ]
    if study.failures:
        failed = "; ".join(f"`{name}` ({reason})" for name, reason in study.failures)
        lines += ["", f"Not finished, and left out: {failed}."]
    return lines


def _versions(study: Study) -> str:
    noted = []
    for run in study.runs:
        file = run.folder / "versions.json"
        noted.append(json.loads(file.read_text("utf-8")) if file.is_file() else {})
    torch, device = (sorted({str(each[name]) for each in noted if name in each}) for name in ("torch", "device"))
    return f"torch {', '.join(torch) or '?'}; a run has {' / '.join(device) or '?'}"


def _short(study: Study) -> list[str]:
    """One line a claim: where it holds against whom."""
    lines = []
    for claim, (title, _) in CLAIMS.items():
        parts = []
        for rival in study.rivals:
            of = [d for d in study.differences if d.measure.claim == claim and d.theirs == rival.line]
            groups = [
                (v, [d.measure.short for d in of if d.verdict == v]) for v in (SUPPORTED, CONTRADICTED, UNDECIDED)
            ]
            said = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups if names)
            parts.append(f"Against {rival.line}: {said}.")
        lines.append(f"- **({claim}) {title}.** {' '.join(parts)}")
    return lines


def _unsupported(study: Study) -> list[str]:
    undecided = sum(d.verdict == UNDECIDED for d in study.differences)
    return [
        *("Contradicted:", "", *_listed(study, CONTRADICTED), ""),
        f"{undecided} of {len(study.differences)} comparisons are {UNDECIDED}; the tables below have their figures.",
    ]


def _listed(study: Study, verdict: str) -> list[str]:
    found = [d for d in study.differences if d.verdict == verdict]
    return [f"- ({d.measure.claim}) {d.sentence()}" for d in found] or ["- nothing"]


def _choices(study: Study) -> list[str]:
    header = [
        "",
        "learning rate",
        "knob",
        "at the edge of the grid",
        "evaluator, tuning seed",
        "evaluator",
        "KL",
        "seeds",
    ]
    rows = []
    for objective, choice in study.choices.items():
        tuned, value = study.tuned[objective], choice.setting.final("eval/evaluator")
        setting = [f"{learning_rate(choice.setting.runs[0]):g}", choice.setting.knob, _edge(study, choice)]
        fresh = [spread(tuned.final("eval/evaluator"), 2), spread(tuned.final("eval/kl"), 2), _seeds(tuned)]
        rows.append([tuned.line, *setting, format_number(value.mean if value else None, 2), *fresh])
    lines = [
        "Rule, fixed before the runs: of the tuning grid (one seed, the same learning rates for every objective), the "
        "setting with the highest evaluator reward at the end that did not collapse. Collapsed means an entropy below "
        f"{COLLAPSED_ENTROPY:g} of its initial value, or fewer than {COLLAPSED_UNIQUE:.0%} different responses. The "
        "last three columns are of fresh seeds, on which everything below is judged.",
        "",
        *table(header, rows),
    ]
    for choice in study.choices.values():
        if not choice.collapse_free:
            lines += ["", f"Every {choice.setting.line} setting of the grid collapsed; the best of them was taken."]
    return lines


def _edge(study: Study, choice: Choice) -> str:
    """Which of the chosen values has no neighbour on one side: better ones may lie outside the grid."""
    mine = [s for s in study.grid if s.line == choice.setting.line]
    rates = sorted({learning_rate(s.runs[0]) for s in mine})
    knobs = list(dict.fromkeys(s.knob for s in mine))
    found = []
    if learning_rate(choice.setting.runs[0]) in (rates[0], rates[-1]):
        found.append("learning rate")
    if choice.setting.knob in (knobs[0], knobs[-1]):
        found.append("knob")
    return ", ".join(found) or "no"


def _claim_table(study: Study, claim: str) -> list[str]:
    tuned = list(study.tuned.values())
    header = ["", *(s.line for s in tuned), *(f"{OURS.upper()} − {rival.line}" for rival in study.rivals)]
    rows = []
    for measure in (m for m in study.measures if m.claim == claim):
        row = [f"{measure.name}{f', {measure.unit.strip()}' if measure.unit.strip() == 'nats' else ''}"]
        row += [_counted(estimate(by_seed(s, measure).values()), measure, len(s.counted)) for s in tuned]
        for rival in study.rivals:
            difference = compare(study.tuned[OURS], rival, measure)
            row.append(f"{spread(difference.value, measure.digits)}: {difference.verdict}")
        rows.append(row)
    return table(header, rows)


def _counted(value: Estimate | None, measure: Measure, runs: int) -> str:
    reached = value.count if value else 0
    return spread(value, measure.digits) + (f" ({reached} of {runs} seeds reach it)" if reached < runs else "")


def _knobs(study: Study) -> list[str]:
    rows = [
        [s.line, s.knob, _seeds(s), spread(s.final("eval/kl"), 2), spread(s.final("eval/evaluator"), 2),
         spread(s.final("eval/reward"), 2), _share(s.counted)]
        for s in study.knobs
    ]  # fmt: skip
    return table(["", "knob", "seeds", "KL", "evaluator", "training reward", "collapsed"], rows)


def _collapse(study: Study) -> list[str]:
    rows = []
    for tuned in study.tuned.values():
        grid = [s for s in study.grid if s.line == tuned.line]
        gone = [f"{learning_rate(s.runs[0]):g} with {s.knob}" for s in grid if any(map(collapsed, s.counted))]
        tried = [run for s in grid for run in s.counted]
        rows.append([tuned.line, _share(tuned.counted), _share(tried), ", ".join(gone) or "none"])
    return table(["", "collapsed, tuned", "collapsed, tuning grid", "where (learning rate with knob)"], rows)


def _grid(study: Study) -> list[str]:
    chosen = [choice.setting.runs[0].folder for choice in study.choices.values()]
    rows = []
    for setting in study.grid:
        run = setting.runs[0]
        name = f"**{setting.line}**, chosen" if run.folder in chosen else setting.line
        values = [run.last(f"eval/{name}") for name in ("evaluator", "kl", "entropy", "unique_fraction")]
        numbers = [format_number(value, 2) for value in values]
        rows.append([name, f"{learning_rate(run):g}", setting.knob, *numbers, "yes" if collapsed(run) else "no"])
    return table(["", "learning rate", "knob", "evaluator", "KL", "entropy", "different", "collapsed"], rows)


def _limits(study: Study) -> list[str]:
    count, policy = len(study.differences), study.tuned[OURS].runs[0].config.get("policy.path")
    seeds = [len(setting.counted) for setting in study.tuned.values()]
    lines = [
        f"- One task and one policy (`{policy}`): the results say nothing about other models, prompts or rewards.",
        "- The separate evaluator is a proxy too: it does not replace human judgement.",
        f"- At least {min(seeds)} seeds per setting, and {count} comparisons at 95 % each, without correction: if all "
        f"true differences were zero, about {count / 20:.1g} of them would still be called supported or contradicted.",
        "- Settings were chosen with one seed from a small grid. Fresh seeds keep that luck out of the figures, not "
        "out of the choice. Knobs of different objectives have no common scale.",
        "- Reward at equal KL is interpolated linearly between two evaluations, at the first crossing. Seeds that do "
        "not reach a level are left out there, and only pairs in which both reach it are compared.",
        "- Less KL is not better in itself: read (b) together with (a).",
    ]
    if different := _differing(study):
        lines.append(f"- Besides the objective, learning rate and knob, the recipes differ in: {'; '.join(different)}.")
    return lines


def _differing(study: Study) -> list[str]:
    configs = {s.line: s.runs[0].config for s in study.tuned.values()}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    return [
        f"`{key}` ({', '.join(f'{line} {setting_text(config.get(key))}' for line, config in configs.items())})"
        for key in keys
        if key not in _EXPECTED
        and not key.startswith("tracking.")
        and len({str(config.get(key)) for config in configs.values()}) > 1
    ]


def _seeds(setting: Setting) -> str:
    return ", ".join(str(run.seed) for run in sorted(setting.counted, key=lambda run: run.seed))


def _share(runs: Sequence[Run]) -> str:
    return f"{sum(map(collapsed, runs))} of {len(runs)}"
