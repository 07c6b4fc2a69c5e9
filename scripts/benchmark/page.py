"""The table on the terminal, and docs/performance.md with its picture and long tables. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.page import DETAILS, with_details

from apa_cli.tracking.style import BLUE, GREY, ORANGE, new_figure
from benchmark import summary
from benchmark.growth import Point
from benchmark.jobs import GROUP, KL_COEF, LORA_RANK, Job
from benchmark.records import Record, apart
from benchmark.summary import PHASES, Row, Verdict

KEPT = ("<!-- tried: kept by scripts/bench.py -->", "<!-- end of tried -->")
NOTHING_TRIED = "Nothing noted yet."
HEADER = (
    "contestant", "responses/s", "seconds", *PHASES, "÷ floor", "update ÷ floor",
    "× TRL PPO", "× TRL GRPO", "memory, MiB", "÷ TRL PPO's", "÷ TRL GRPO's",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    return [
        row.name,
        f"{row.responses_per_second:.2f}",
        f"{row.seconds:.2f}",
        *(f"{row.phases[phase]:.2f}" for phase in PHASES),
        *(_ratio(value) for value in (row.floor, row.update_floor, row.trl_ppo, row.trl_grpo)),
        _mebibytes(row.beyond_bytes),
        *(_ratio(value) for value in (row.memory_trl_ppo, row.memory_trl_grpo)),
    ]


def table(rows: Sequence[Row]) -> list[str]:
    return markdown(HEADER, [cells(row) for row in rows])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose source is aligned too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    rule = "-|-".join("-" * width for width in widths)
    return [f"| {lines[0]} |", f"|-{rule}-|", *(f"| {line} |" for line in lines[1:])]


def verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [
        [v.what, v.target, "not measured yet" if v.measured is None else f"{v.measured:.2f}", v.word] for v in verdicts
    ]
    return markdown(("what", "target", "measured", ""), rows)


def growth_table(axis: str, points: Sequence[Point]) -> list[str]:
    """`ms per further one`: of each response token more than in the row above."""
    rows = []
    for i, p in enumerate(points):
        more = p.tokens - points[i - 1].tokens if i else 0
        further = f"{1000 * (p.seconds - points[i - 1].seconds) / more:.3f}" if more else "–"
        rows.append([f"{p.size:,}", f"{p.tokens:,}", f"{p.seconds:.2f}", f"{1000 * p.per_token:.3f}", further,
                     _mebibytes(p.working_bytes)])  # fmt: skip
    header = (axis, "response tokens", "seconds", "ms per response token", "ms per further one", "working memory, MiB")
    return markdown(header, rows)


def write(
    path: Path,
    *,
    records: Sequence[Record],
    growth: Mapping[str, Sequence[Point]],
    growth_records: Sequence[Record],
    verdicts: Sequence[Verdict],
    facts: Mapping[str, str],
    unmeasured: Sequence[Job],
    hardware: Sequence[Sequence[str]],
) -> None:
    """The page, whole; what stands between the KEPT marks is the maintainers' and stays."""
    rows = {record.job.title: summary.rows(record.job, record.results) for record in records}
    picture = draw(rows, path.parent / "images" / f"{path.stem}.png")
    lines = ["# Performance", "", *INTRODUCTION, ""]
    lines += [*markdown(("", ""), [[name, value] for name, value in facts.items()]), "", "## In short", ""]
    lines += [
        *(_in_short(title, table) for title, table in rows.items()),
        *_growth_in_short(growth),
        _met(verdicts),
        "",
    ]
    lines += [f"![Speed and memory relative to TRL's PPO](images/{picture.name})", ""]
    if unmeasured:
        lines += ["## Not measured yet", ""]
        lines += [*(f"- {job.title}{' (needs a GPU)' if job.cuda else ''}" for job in unmeasured), ""]
    lines += [*METHOD, "", "## Tried without benefit", "", KEPT[0], kept(path), KEPT[1], "", DETAILS]
    lines += ["## Targets", "", *verdict_table(verdicts), ""]
    for record in records:
        job, results = record.job, record.results
        lines += [f"## {job.title}", "", _sizes(job), apart(record, facts), "", *table(rows[job.title]), ""]
        failed = {name: result["error"] for name, result in results.items() if "error" in result}
        lines += [*(f"{name} failed: {error}" for name, error in failed.items()), ""] if failed else []
    if hardware:
        header = ("job", "contestant", "decode, share of copy bandwidth", "update, share of bf16 matrix rate")
        lines += ["## Compared with the GPU itself", "", *markdown(header, hardware), ""]
    if growth:
        lines += ["## Growth", "", *GROWTH, "", *dict.fromkeys(apart(record, facts) for record in growth_records), ""]
        for axis, points in growth.items():
            lines += [*growth_table(axis, points), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(with_details(path, path.stem, lines)) + "\n", encoding="utf-8")


def _in_short(title: str, rows: Sequence[Row]) -> str:
    """One line a job: ours relative to TRL's trainers."""
    ours = [row for row in rows if row.trl_ppo is not None and row.name in ("ppo-separate", "apa-shared")]
    words = [f"`{row.name}` {row.trl_ppo:.2f} × with {_ratio(row.memory_trl_ppo)} × the memory" for row in ours]
    words = [f"responses per second relative to TRL's PPO: {', '.join(words)}"] if words else []
    words += [
        f"`apa-group` relative to TRL's GRPO: {row.trl_grpo:.2f} × with {_ratio(row.memory_trl_grpo)} × the memory"
        for row in rows
        if row.name == "apa-group" and row.trl_grpo is not None
    ]
    return f"- {title}: {'; '.join(words) or 'TRL was not measured'}."


def _growth_in_short(growth: Mapping[str, Sequence[Point]]) -> list[str]:
    words = [
        f"{points[-1].per_token / points[0].per_token:.2f} × and "
        f"{points[-1].working_bytes / max(1, points[0].working_bytes):.2f} × with {axis} × "
        f"{points[-1].size / points[0].size:g}"
        for axis, points in growth.items()
        if len(points) > 1
    ]
    start = "- Relative to the smallest size, seconds per response token and working memory are"
    return [f"{start} {', '.join(words)}."] if words else []


def _met(verdicts: Sequence[Verdict]) -> str:
    counts = {word: sum(v.word == word for v in verdicts) for word in ("met", "missed", "not measured")}
    said = ", ".join(f"{count} are {word}" for word, count in counts.items())
    return f"- Of {len(verdicts)} [targets](tables/performance.md), {said}."


def draw(rows: Mapping[str, Sequence[Row]], path: Path) -> Path:
    """A panel a job: responses per second and memory beyond the weights of each contestant, over TRL PPO's."""
    figure = new_figure(13, 4.6)
    panels = figure.subplots(1, max(1, len(rows)), squeeze=False)[0]
    for axes, (title, table) in zip(panels, rows.items(), strict=False):
        shown = [row for row in table if row.trl_ppo is not None][::-1]
        for shift, colours, values in (
            (0.2, (BLUE, GREY), [row.trl_ppo or 0.0 for row in shown]),
            (-0.2, (ORANGE, "#C8C8C8"), [row.memory_trl_ppo or 0.0 for row in shown]),
        ):
            places = [place + shift for place in range(len(shown))]
            bars = [colours[row.name.startswith("trl") or row.name == "floor"] for row in shown]
            axes.barh(places, values, height=0.38, color=bars)
            for place, value in zip(places, values, strict=True):
                axes.text(value, place, f" {value:.2f}", va="center", fontsize=7.5)
        axes.axvline(1.0, color="#555555", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(shown)), [row.name for row in shown], fontsize=8.5)
        axes.set_title(textwrap.fill(title, 36), loc="left", fontsize=9.5, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    figure.supxlabel(
        "relative to TRL's PPO: upper bar responses per second (more is better), lower bar memory beyond the weights "
        "(less is better); grey: not apa-cli",
        fontsize=8.5,
        color="#555555",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def kept(path: Path) -> str:
    """What the page that is there says between the marks."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if KEPT[0] not in text or KEPT[1] not in text:
        return NOTHING_TRIED
    return text.split(KEPT[0])[1].split(KEPT[1])[0].strip("\n")


def _sizes(job: Job) -> str:
    shape = job.shape
    return (
        f"hidden {shape.hidden} × {shape.layers} layers, {job.responses} responses per iteration, {job.passes} passes, "
        f"minibatch {job.minibatch}, {job.precision}, every response {job.response_tokens} tokens."
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


INTRODUCTION = """\
Written by `scripts/bench.py` (`make bench`). Contestants take turns, one iteration each, each in a process of its
own, on the same models (random weights), prompts and settings. Ratios are medians over rounds of the ratio within a
round. The folder performance/ beside this page keeps what was measured of each job, and when; measuring one job again
leaves the others as they were.""".splitlines()

GROWTH = """\
APA with a shared critic, 16 responses of 64 + 64 tokens, vocabulary 8,192, one size changed. Working memory is the
peak beyond the weights, their gradients and the optimizer's two moments, the median of the rounds. Prompts keep their
64 tokens.""".splitlines()

METHOD = f"""## What is compared

- **ours** (`ppo-…`, `apa-…`): the real training loop as `apa-train` runs it, with defaults for everything not named
  above. The name gives objective and critic: a separate network, a head on the policy's trunk (shared), or an adapter
  (LoRA rank {LORA_RANK}, used for the policy too, where the others train all weights). `apa-group` has no critic and
  groups of {GROUP}.
- **trl-ppo**: TRL's PPOTrainer with a separate critic, a real optimizer step for every minibatch, no gradient
  checkpointing, and no tables of samples. **trl-grpo**: TRL's GRPOTrainer with groups of {GROUP}, on the same prompts
  as `apa-group`; β is {KL_COEF}, so that it computes reference log-probs as the others do. Both see an eighth of the
  prompts, and the lengths of these affect their ratios to the others.
- **floor**: a plain script of the parts that cannot be left out. It uses transformers' `generate` with the dynamic
  cache and records nothing; it makes a reward, a reference and a critic pass; for each minibatch it runs the policy's
  forward and backward pass, the critic's, gradient clipping and a fused AdamW step. It computes logits at response
  positions only; rows are sorted by length, padded on the right so that attention needs no mask, and split into groups
  of the padded size that was fastest in a trial during the warm-up. A contestant with a separate critic is compared
  with a floor that includes the critic's passes; adapters and groups have no floor.
- **seconds** last from the request for an iteration to its end, including tracking. `forward` is the reference's, the
  critic's and, for PPO, the policy's pass over the rollout.
- **memory** is the peak beyond the loaded weights, including gradients and optimizer states. On a CPU it is the VmHWM
  of the contestant's process, reset through /proc/self/clear_refs before every round, minus its resident size when
  everything is loaded and every weight has been read; the highest of the rounds. On a GPU it is torch's peak of
  allocated bytes minus the bytes allocated at that point.
- No response ends early: ours and GRPO suppress the end of text, and TRL's PPO does not look for it. All contestants
  use the same number of threads.""".splitlines()
