"""The page's overview of all that was measured: a line and a panel per job. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.draw import save

from apa_cli.tracking.style import BLUE, GREY, ORANGE, new_figure
from benchmark.jobs import Job
from benchmark.summary import Row, Verdict

PPO, GRPO = ("PPO", "× TRL PPO", "÷ TRL PPO's"), ("GRPO", "× TRL GRPO", "÷ TRL GRPO's")
RIVALS = (("ppo-separate", *PPO), ("apa-shared", *PPO), ("apa-group", *GRPO))


def lines(
    tables: Mapping[Job, Mapping[str, Row]], points: Mapping[str, Sequence[Row]], verdicts: Sequence[Verdict]
) -> list[str]:
    """Ours relative to TRL's trainers, growth, and how many targets are met."""
    said = [f"- {job.title}: {_relative(table)}." for job, table in tables.items()]
    time, memory, size = "ms per response token", "working memory, MiB", "size"
    growth = [
        f"{last[time] / first[time]:.2f} × and {last[memory] / max(1e-9, first[memory]):.2f} × with "
        f"{axis} × {last[size] / first[size]:g}"
        for axis, (first, *_, last) in ((axis, along) for axis, along in points.items() if len(along) > 1)
    ]
    start = "Relative to the smallest size, seconds per response token and working memory are"
    said += [f"- {start} {', '.join(growth)}."] if growth else []
    words = [verdict.word for verdict in verdicts if verdict.measured is not None]
    return [*said, f"- {words.count('met')} of the {len(words)} targets that were measured are met."]


def _relative(table: Mapping[str, Row]) -> str:
    found = [
        f"`{name}` {table[name][speed]:.2f} × with {table[name][memory] or 0:.2f} × the memory of {rival}"
        for name, rival, speed, memory in RIVALS
        if name in table and table[name][speed] is not None
    ]
    return f"responses per second relative to TRL: {', '.join(found)}" if found else "TRL was not measured"


def draw(tables: Mapping[Job, Mapping[str, Row]], path: Path) -> str:
    """Responses per second and memory beyond the weights of each contestant, over TRL PPO's."""
    figure = new_figure(13, 4.6)
    panels = figure.subplots(1, max(1, len(tables)), squeeze=False)[0]
    for axes, (job, table) in zip(panels, tables.items(), strict=False):
        shown = {name: row for name, row in reversed(table.items()) if row["× TRL PPO"] is not None}
        for shift, colours, column in ((0.2, (BLUE, GREY), "× TRL PPO"), (-0.2, (ORANGE, "#C8C8C8"), "÷ TRL PPO's")):
            places, values = [place + shift for place in range(len(shown))], [row[column] for row in shown.values()]
            bars = [colours[not name.startswith(("ppo-", "apa-"))] for name in shown]
            axes.barh(places, values, height=0.38, color=bars)
            for place, value in zip(places, values, strict=True):
                axes.text(value, place, f" {value:.2f}", va="center", fontsize=7.5)
        axes.axvline(1.0, color="#555555", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(shown)), list(shown), fontsize=8.5)
        axes.set_title(textwrap.fill(job.title, 36), loc="left", fontsize=9.5, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    figure.supxlabel(
        "relative to TRL's PPO: upper bar responses per second (more is better), lower bar memory beyond the weights "
        "(less is better); grey: not apa-cli",
        fontsize=8.5,
        color="#555555",
    )
    return save(figure, path, "Speed and memory relative to TRL's PPO")
