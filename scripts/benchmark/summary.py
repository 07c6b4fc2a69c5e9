"""From the seconds of every iteration to medians, ratios and growth, and the page's overview. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from studies.draw import save

from apa_cli.tracking.style import BLUE, GREY, ORANGE, new_figure
from benchmark.jobs import GROWING, Job

PHASES = ("generate", "score", "forward", "update")
CRITIC = " value"  # ends the names of the floor's phases that only a critic of its own needs
COPIES = 3  # of the trained weights: a gradient and AdamW's two moments
PPO, GRPO = ("PPO", "× TRL PPO", "÷ TRL PPO's"), ("GRPO", "× TRL GRPO", "÷ TRL GRPO's")
RIVALS = (("ppo-separate", *PPO), ("apa-shared", *PPO), ("apa-group", *GRPO))
TIME, MEMORY = "ms per response token", "working memory, MiB"  # of a point of growth

Row = dict[str, Any]  # by column; None: nothing to compare with
Step = Mapping[str, Any]


def rows(job: Job, results: Mapping[str, Any]) -> dict[str, Row]:
    """One a contestant that has steps: medians over rounds; ratios are medians of the rounds' own ratios."""
    return {name: _row(name, job, results) for name, result in results.items() if result.get("steps")}


def _row(name: str, job: Job, results: Mapping[str, Any]) -> Row:
    steps, own = results[name]["steps"], name.endswith("-separate")
    seconds = median(step["seconds"] for step in steps)
    phases = {p: median(s["phases"].get(p, 0.0) + s["phases"].get(p + CRITIC, 0.0) for s in steps) for p in PHASES}
    # the floor trains all weights, on other prompts than groups have
    has_floor = name.startswith(("ppo-", "apa-")) and not name.endswith(("-adapter", "-group"))

    def ratio(other: str, of: Callable[[Step, Step], float]) -> float | None:
        against = results.get(other, {}).get("steps") or []
        return median(of(mine, theirs) for mine, theirs in zip(steps, against, strict=False)) if against else None

    def quicker(mine: Step, theirs: Step) -> float:
        return float(theirs["seconds"] / mine["seconds"])

    def bare(phase: str, of: Callable[[Step], float]) -> float | None:
        """Over the seconds of the floor's phases that begin so, with or without a critic of its own."""

        def floor(step: Step) -> float:
            kept = {name: s for name, s in step["phases"].items() if own or not name.endswith(CRITIC)}
            return sum(s for name, s in kept.items() if name.startswith(phase))

        return ratio("floor", lambda mine, theirs: of(mine) / floor(theirs)) if has_floor else None

    def memory(other: str) -> float | None:
        return _peak(results[name]) / most if (most := _peak(results.get(other, {}))) > 0 else None

    return {
        "responses/s": job.responses / seconds,
        "seconds": seconds,
        **phases,
        "÷ floor": bare("", lambda step: step["seconds"]),
        "update ÷ floor": bare("update", lambda step: step["phases"]["update"]),
        "× TRL PPO": ratio("trl-ppo", quicker),
        "× TRL GRPO": ratio("trl-grpo", quicker),
        "memory, MiB": _peak(results[name]) / 2**20,
        "÷ TRL PPO's": memory("trl-ppo"),
        "÷ TRL GRPO's": memory("trl-grpo"),
    }


def _peak(result: Mapping[str, Any]) -> int:
    return max((step["beyond_bytes"] for step in result.get("steps") or []), default=0)


def cells(row: Row) -> list[str]:
    wide = ("memory, MiB", MEMORY, "response tokens", "size")
    return [
        "–" if value is None else f"{value:,.0f}" if name in wide else f"{value:.{2 + name.startswith('ms')}f}"
        for name, value in row.items()
    ]


def point(job: Job, size: int, results: Mapping[str, Any], before: Row | None = None) -> Row:
    """A size along an axis of growth: working memory is the peak beyond weights, gradients and optimizer states, of
    the median round. `before`: the next smaller size."""
    result, tokens = results[GROWING.name], job.responses * job.response_tokens
    seconds = median(step["seconds"] for step in result["steps"])
    working = median(step["beyond_bytes"] for step in result["steps"]) - COPIES * result["trained_bytes"]
    more = tokens - before["response tokens"] if before else 0
    further = 1000 * (seconds - before["seconds"]) / more if before and more else None
    return {"size": size, "response tokens": tokens, "seconds": seconds, TIME: 1000 * seconds / tokens,
            "ms per further one": further, MEMORY: working / 2**20}  # fmt: skip


def overview(tables: Mapping[Job, Mapping[str, Row]], points: Mapping[str, Sequence[Row]]) -> list[str]:
    """Ours relative to TRL's trainers, and growth."""
    said = []
    for job, table in tables.items():
        found = [
            f"`{name}` {table[name][speed]:.2f} × with {table[name][memory] or 0:.2f} × the memory of {rival}"
            for name, rival, speed, memory in RIVALS
            if name in table and table[name][speed] is not None
        ]
        relative = f"responses per second relative to TRL: {', '.join(found)}" if found else "TRL was not measured"
        said.append(f"- {job.title}: {relative}.")
    growth = [
        f"{last[TIME] / first[TIME]:.2f} × and {last[MEMORY] / max(1e-9, first[MEMORY]):.2f} × with {axis} × "
        f"{last['size'] / first['size']:g}"
        for axis, (first, *_, last) in ((axis, along) for axis, along in points.items() if len(along) > 1)
    ]
    start = "- Relative to the smallest size, seconds per response token and working memory are"
    return [*said, *([f"{start} {', '.join(growth)}."] if growth else [])]


def draw(tables: Mapping[Job, Mapping[str, Row]], path: Path) -> str:
    """Responses per second and memory beyond the weights of each contestant, over TRL PPO's."""
    figure = new_figure(13, 4.6)
    panels = figure.subplots(1, max(1, len(tables)), squeeze=False)[0]
    for axes, (job, table) in zip(panels, tables.items(), strict=False):
        shown = {name: row for name, row in reversed(table.items()) if row["× TRL PPO"] is not None}
        for shift, colours, column in ((0.2, (BLUE, GREY), "× TRL PPO"), (-0.2, (ORANGE, "#C8C8C8"), "÷ TRL PPO's")):
            places, values = [place + shift for place in range(len(shown))], [row[column] for row in shown.values()]
            bars = [colours[not name.startswith(("ppo-", "apa-"))] for name in shown]
            axes.bar_label(axes.barh(places, values, height=0.38, color=bars), fmt=" %.2f", fontsize=7.5)
        axes.axvline(1.0, color="#555555", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(shown)), list(shown), fontsize=8.5)
        axes.set_title(textwrap.fill(job.title, 36), loc="left", fontsize=9.5, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    words = (
        "relative to TRL's PPO: upper bar responses per second (more is better), lower bar memory beyond the weights "
        "(less is better); grey: not apa-cli"
    )
    figure.supxlabel(words, fontsize=8.5, color="#555555")
    return save(figure, path, "Speed and memory relative to TRL's PPO")
