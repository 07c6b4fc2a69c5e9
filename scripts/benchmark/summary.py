"""From the seconds of every iteration to medians and ratios, and the page's overview. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from studies.draw import save

from apa_cli.tracking.style import BLUE, GREY, ORANGE, new_figure
from benchmark.jobs import Job, work

PHASES = ("generate", "score", "forward", "update")
PPO, GRPO = ("PPO", "× TRL PPO", "÷ TRL PPO's"), ("GRPO", "× TRL GRPO", "÷ TRL GRPO's")
RIVALS = (("ppo-separate", *PPO), ("apa-shared", *PPO), ("apa-group", *GRPO))

Row = dict[str, Any]  # by column; None: nothing to compare with


def rows(job: Job, results: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> dict[str, Row]:
    """One a contestant that has steps: medians over rounds; ratios are medians of the rounds' own ratios.

    facts: mean_prompt and matrix_flops, as bench.py keeps them.
    """
    return {name: _row(name, job, results, facts or {}) for name, result in results.items() if result.get("steps")}


def _row(name: str, job: Job, results: Mapping[str, Any], facts: Mapping[str, Any]) -> Row:
    steps = results[name]["steps"]
    seconds = median(step["seconds"] for step in steps)
    phases = {p: median(step["phases"].get(p, 0.0) for step in steps) for p in PHASES}

    def quicker(other: str) -> float | None:
        pairs = list(zip(steps, results.get(other, {}).get("steps") or [], strict=False))
        return median(theirs["seconds"] / mine["seconds"] for mine, theirs in pairs) if pairs else None

    def memory(other: str) -> float | None:
        return _peak(results[name]) / most if (most := _peak(results.get(other, {}))) > 0 else None

    done = work(job, name, facts["mean_prompt"]) if facts.get("matrix_flops") else None
    return {
        "responses/s": job.responses / seconds,
        "seconds": seconds,
        **phases,
        "× TRL PPO": quicker("trl-ppo"),
        "× TRL GRPO": quicker("trl-grpo"),
        "memory, MiB": _peak(results[name]) / 2**20,
        "÷ TRL PPO's": memory("trl-ppo"),
        "÷ TRL GRPO's": memory("trl-grpo"),
        "tokens a pass": done and done[0],
        "of matrix rate": done and done[1] / seconds / facts["matrix_flops"],
    }


def _peak(result: Mapping[str, Any]) -> int:
    return max((step["beyond_bytes"] for step in result.get("steps") or []), default=0)


def cells(row: Row) -> list[str]:
    return [
        "–" if value is None else f"{value:,.0f}" if name in ("memory, MiB", "tokens a pass") else f"{value:.2f}"
        for name, value in row.items()
    ]


def overview(tables: Mapping[Job, Mapping[str, Row]]) -> list[str]:
    """Ours relative to TRL's trainers."""
    said = []
    for job, table in tables.items():
        found = [
            f"`{name}` {table[name][speed]:.2f} × with {table[name][memory] or 0:.2f} × the memory of {rival}"
            for name, rival, speed, memory in RIVALS
            if name in table and table[name][speed] is not None
        ]
        relative = f"responses per second relative to TRL: {', '.join(found)}" if found else "TRL was not measured"
        said.append(f"- {job.title}: {relative}.")
    return said


def draw(tables: Mapping[Job, Mapping[str, Row]], path: Path) -> str:
    """Responses per second and memory beyond the weights of each contestant, over TRL PPO's."""
    figure = new_figure(13, 4.6)
    compared = {job: table for job, table in tables.items() if any(row["× TRL PPO"] for row in table.values())}
    panels = figure.subplots(1, max(1, len(compared)), squeeze=False)[0]
    for axes, (job, table) in zip(panels, compared.items(), strict=False):
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
