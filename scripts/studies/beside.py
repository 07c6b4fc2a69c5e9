"""Studies of a few settings side by side: each is a list of settings, and what is shown of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from apa_cli.runs.folders import Run
from studies import compare, measures
from studies.compare import Column, Judged, Row, mean, third
from studies.draw import EVALUATOR, KL, LOOKS, Line, Panel, curves
from studies.runs import Found, Setting, Size


@dataclass(frozen=True, kw_only=True)
class Variant:
    cells: Sequence[str]
    name: str
    setting: Setting
    against: str = ""  # the name of the variant that it is compared with
    panel: str = ""  # the title of the one panel that shows it; none: all do
    label: str = ""  # there, where not its name


@dataclass(frozen=True, kw_only=True)
class Study:
    title: str
    duration: str
    variants: Sequence[Variant]
    header: Sequence[str]
    columns: Mapping[str, Column]
    judged: Judged
    panels: Sequence[Panel]  # their lines are the variants'
    picture: tuple[str, str]  # its name, and what it shows
    note: str

    def settings(self, size: Size) -> list[Setting]:
        return [variant.setting for variant in (self.variants[:2] if size.quick else self.variants)]

    def lines(self, runs: Found, size: Size, pictures: Path) -> list[str]:
        there = [variant for variant in self.variants if runs[variant.setting.name]]
        rows = [Row(cells=v.cells, name=v.name, runs=runs[v.setting.name], against=v.against) for v in there]
        name, alt = self.picture
        panels = []
        for panel in self.panels:
            drawn = zip((v for v in there if v.panel in ("", panel.title)), LOOKS, strict=False)
            lines = [Line(label=v.label or v.name, runs=runs[v.setting.name], **look) for v, look in drawn]
            panels.append(replace(panel, lines=lines))
        picture = curves(pictures / f"methods_{name}.png", alt, panels, same_y=len({p.of for p in panels}) == 1)
        return compare.report(rows, self.header, self.columns, self.judged, picture=picture, note=self.note)


def over_iterations(name: str) -> measures.OfPoints:
    return partial(measures.points, x="iteration", y=name)


def fixed(kl_lambda: float) -> Setting:
    return changed(kl_lambda, f"apa_lambda{kl_lambda:g}", {})


def changed(kl_lambda: float, name: str, keys: Mapping[str, Any]) -> Setting:
    return Setting(name=name, recipe=RECIPE, keys={"objective.kl_lambda": kl_lambda, **keys})


# KL on target, from a λ far too high and one far too low, beside the fixed λ that came nearest to it.
RECIPE = "reviews_apa"
NEAREST = {2.0: 0.6, 5.0: 0.3, 10.0: 0.1}  # by target
STEERED = [(target, start) for target in NEAREST for start in (3.0, 0.06)]


def over_target(run: Run) -> float | None:
    held = measures.tail(run, "kl/to_init")
    return None if held is None else held / run.config.get("objective.kl_target", math.nan)


STEER = Study(
    title="KL steered to 2, 5 and 10 nats, and fixed λ to compare with",
    duration="27 runs, about 30 minutes of one CPU core",
    variants=[
        *(Variant(cells=[f"{target:g} nats, from λ {start:g}"], name=f"{target:g} nats from λ {start:g}",
                  setting=changed(start, f"apa_target{target:g}_from{start:g}", {"objective.kl_target": target}),
                  against=f"λ {NEAREST[target]:g}")
          for target, start in STEERED),
        *(Variant(cells=[f"λ {kl_lambda:g}, fixed"], name=f"λ {kl_lambda:g}", setting=fixed(kl_lambda), panel="none")
          for kl_lambda in NEAREST.values()),
    ],
    header=["KL"],
    columns={
        "KL, last third": third("kl/to_init"),
        "over its target": mean(over_target),
        "KL at the end": mean("eval/kl"),
        "evaluator": mean("eval/evaluator"),
        **compare.UNIQUE,
    },
    judged=lambda ours, theirs: measures.at_common_kl(ours, theirs),
    panels=[
        Panel(title="KL from the initial policy", of=over_iterations("kl/to_init"), y="nats per response",
              levels=list(NEAREST)),
        Panel(title="λ", of=over_iterations("objective/kl_lambda"), log="y"),
    ],
    picture=("steer", "KL and λ over training"),
    note="Each target is compared with the fixed λ whose KL comes nearest to it, at a KL that all runs of both reach.",
)  # fmt: skip

# Without a critic: each objective with four responses to a prompt, beside itself with a critic.
FOUR: dict[str, Any] = {"advantage.name": "group", "value.kind": "none", "rollout.responses_per_prompt": 4}
BASELINES = {"critic": ("_critic", {}), "group of 4": ("_group4", FOUR),
             "group of 4, scaled": ("_group4_scaled", {**FOUR, "advantage.group_scale": True})}  # fmt: skip
OBJECTIVES = {"APA": ("λ from 0.3, steered to 5 nats", {"objective.kl_target": 5.0}, 3),
              "AWR": ("λ 2", {}, 2), "PPO": ("β 0.05", {}, 2)}  # its knob, its keys, how many baselines  # fmt: skip
GROUP = Study(
    title="APA, AWR and PPO without a critic, beside themselves with one",
    duration="21 runs, about 20 minutes of one CPU core",
    variants=[
        Variant(
            cells=[f"{title}, {knob}", baseline],
            name=f"{title} with {baseline}",
            setting=Setting(name=f"{title.lower()}{suffix}", recipe=f"reviews_{title.lower()}",
                            keys={**own, **keys}, evaluations=12),
            against="" if baseline == "critic" else f"{title} with critic",
            panel=f"{title}, {knob}",
            label=baseline,
        )
        for title, (knob, own, count) in OBJECTIVES.items()
        for baseline, (suffix, keys) in list(BASELINES.items())[:count]
    ],
    header=["objective", "baseline"],
    columns={**compare.LAST_THIRD, **compare.UNIQUE, **compare.SECONDS},
    judged=lambda ours, theirs: [*measures.at_common_kl(ours, theirs, low=2.0), measures.LAST_THIRD, measures.CPU],
    panels=[Panel(title=f"{title}, {knob}", of=measures.reward_over_kl, x=KL, y=EVALUATOR)
            for title, (knob, _, _) in OBJECTIVES.items()],
    picture=("group", "Evaluator against KL"),
    note="Levels of KL: 2 nats, and the highest multiple of half a nat that all runs of both settings reach. Last "
    "third: means over the evaluations in the last third of training. Seconds are medians over iterations, without "
    "evaluations; the machine also did other work, which affects wall seconds. [performance.md](performance.md) has "
    "the measured speed and memory of larger models.",
)  # fmt: skip

# Where the critic starts: from the policy or the reward model, with or without warm-up, or on the policy's trunk.
POLICY, REWARD, WARM = (
    "separate, from the policy",
    {"value.path": "builtin:reviews/reward"},
    {"value.warmup_iterations": 5},
)
STARTS = {POLICY: None, f"{POLICY}, warm-up 5": ("warm", WARM), "separate, from the reward model": ("reward", REWARD),
          "separate, from the reward model, warm-up 5": ("reward_warm", {**REWARD, **WARM}),
          "shared with the policy": ("shared", {"value.kind": "shared"})}  # fmt: skip
LATE = 6


def explained(first: int, last: int) -> Column:
    return mean(partial(measures.between, name="value/explained_variance", first=first, last=last))


def explained_late(run: Run) -> float | None:
    return measures.between(run, "value/explained_variance", run.iterations - LATE + 1, run.iterations)


CRITIC = Study(
    title="where a critic starts: policy, reward model, warm-up, shared trunk",
    duration="15 runs (3 of them shared with steer), about 15 minutes of one CPU core",
    variants=[
        Variant(cells=[start], name=start, against=POLICY if start != POLICY else "",
                setting=changed(0.3, f"apa_critic_{own[0]}", own[1]) if own else fixed(0.3))
        for start, own in STARTS.items()
    ],
    header=["critic"],
    columns={
        "explained variance, iterations 1 to 5": explained(1, 5),  # noisy from one to the next
        "explained variance, iterations 6 to 10": explained(6, 10),
        f"last {LATE}": mean(explained_late),
        measures.OVER_TRAINING.name: mean(measures.over_training),
        **compare.LAST_THIRD,
        **compare.SECONDS,
    },
    judged=lambda ours, theirs: [measures.OVER_TRAINING, measures.LAST_THIRD, *measures.at_common_kl(ours, theirs)],
    panels=[
        Panel(title="Explained variance of the critic", of=over_iterations("value/explained_variance"), mean_only=True,
              levels=[0]),
        Panel(title="Separate evaluator", of=measures.reward_over_rollouts, x="responses sampled", y=EVALUATOR),
    ],
    picture=("critic", "Explained variance and evaluator"),
    note="APA at λ 0.3. Each run has the same number of rollouts, so that a warm-up of 5 iterations leaves 5 fewer to "
    "the policy.",
)  # fmt: skip

# Length penalty: none, a mild and a strong one on tokens beyond 12, and what brevity costs.
PLAIN = "no penalty"
REWARDS = Study(
    title="length penalty off, mild and strong, on responses beyond 12 tokens",
    duration="9 runs (3 of them shared with steer), about 10 minutes of one CPU core",
    variants=[
        Variant(cells=["0"], name=PLAIN, setting=fixed(0.3)),
        *(Variant(cells=[f"{penalty:g}"], name=f"{penalty:g} a token beyond 12", against=PLAIN,
                  setting=changed(0.3, f"apa_length12_penalty{penalty:g}",
                                        {"reward.length_target": 12, "reward.length_penalty": penalty}))
          for penalty in (0.05, 0.2)),
    ],
    header=["penalty per token"],
    columns={
        "length before": mean(lambda run: run.first("eval/response_length"), 1),
        "length after": mean("eval/response_length", 1),
        "evaluator after": mean("eval/evaluator"),
        "KL": mean("eval/kl", 1),
        "penalty at the end": mean(partial(measures.tail, name="reward/length_penalty", part=5)),
    },
    judged=lambda ours, theirs: [
        measures.Measure(name="length", of=lambda run: run.last("eval/response_length"), digits=1),
        measures.Measure(name="evaluator", of=lambda run: run.last("eval/evaluator")),
    ],
    panels=[
        Panel(title="Length of a response", of=over_iterations("policy/response_length"), y="tokens", levels=[12]),
        Panel(title="Separate evaluator", of=over_iterations("eval/evaluator"), y=EVALUATOR),
    ],
    picture=("rewards", "Length and evaluator over training"),
    note="`reward.length_target=12`, λ 0.3, on held-out prompts. Length is in tokens, including the end token. The "
    "evaluator ignores length as such: more friendly sentences score higher.",
)  # fmt: skip


def gain(run: Run) -> float | None:
    """Evaluator over the last third of training less that of the policy that training started from."""
    before, after = run.first("eval/evaluator"), measures.tail(run, "eval/evaluator")
    return None if before is None or after is None else after - before


# Offline: APA and AWR on the built-in task's logged pairs. The critic alone learns in the first 10 iterations.
LOGGED = {"APA": (0.3, 0.2, 1.0), "AWR": (0.5, 0.3, 1.0)}  # λ, of which the first gained most
OFFLINE = Study(
    title="APA and AWR on logged pairs, without sampling in the loop",
    duration="18 runs, about 20 minutes on two CPU cores",
    variants=[
        Variant(
            cells=[title, f"{value:g}"],
            name=f"{title} (λ {value:g})",
            setting=Setting(name=f"{title.lower()}_offline_lambda{value:g}", recipe=f"reviews_{title.lower()}_offline",
                            keys={"objective.kl_lambda": value, "value.warmup_iterations": 10}),
            against="AWR (λ 0.5)" if (title, value) == ("APA", 0.3) else "",
            panel=f"{title}, logged pairs alone",
            label=f"λ {value:g}",
        )
        for title, values in LOGGED.items()
        for value in values
    ],
    header=["objective", "λ"],
    columns={
        "evaluator before": mean(lambda run: run.first("eval/evaluator")),
        "last third": third("eval/evaluator"),
        "gain": mean(gain),
        "KL, last third": third("eval/kl"),
        "entropy, last third": third("eval/entropy"),
        **compare.UNIQUE,
    },
    judged=lambda ours, theirs: [*measures.at_common_kl(ours, theirs, low=0.5), measures.LAST_THIRD],
    panels=[Panel(title=f"{title}, logged pairs alone", of=measures.reward_over_kl, x=KL, y=EVALUATOR)
            for title in LOGGED],
    picture=("offline", "Evaluator against KL"),
    note="APA and AWR are compared at the λ with the largest gain of each, and at a KL that all runs of both reach. "
    "Last third: means over the evaluations in the last third of training, which sample from the policy. KL is in nats "
    "per response, entropy in nats per token.",
)  # fmt: skip
