"""The table on the terminal and docs/performance.md. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    """`ms a further one`: of each response token more than in the row above."""
    rows = []
    for i, p in enumerate(points):
        more = p.tokens - points[i - 1].tokens if i else 0
        further = f"{1000 * (p.seconds - points[i - 1].seconds) / more:.3f}" if more else "–"
        rows.append([f"{p.size:,}", f"{p.tokens:,}", f"{p.seconds:.2f}", f"{1000 * p.per_token:.3f}", further,
                     _mebibytes(p.working_bytes)])  # fmt: skip
    header = (axis, "response tokens", "seconds", "ms a response token", "ms a further one", "working memory, MiB")
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
    lines = [
        "# Performance",
        "",
        "Written by `scripts/bench.py` (`make bench`). Contestants take turns, an iteration each, every one in a",
        "process of its own, on the same models (random weights), prompts and settings. Ratios are medians over rounds",
        "of the ratio within the round. What was measured of each job, and when, is in the folder performance/ beside",
        "this page; measuring one job anew leaves the others as they were.",
        "",
        *markdown(("", ""), [[name, value] for name, value in facts.items()]),
        "",
        "## Targets",
        "",
        *verdict_table(verdicts),
        "",
    ]
    for record in records:
        job, results = record.job, record.results
        lines += [f"## {job.title}", "", _sizes(job), apart(record, facts), ""]
        lines += [*table(summary.rows(job, results)), ""]
        failed = {name: result["error"] for name, result in results.items() if "error" in result}
        lines += [*(f"{name} failed: {error}" for name, error in failed.items()), ""] if failed else []
    if hardware:
        header = ("job", "contestant", "decode, share of copy bandwidth", "update, share of bf16 matrix rate")
        lines += ["## Against the GPU itself", "", *markdown(header, hardware), ""]
    if unmeasured:
        lines += ["## Not measured yet", ""]
        lines += [*(f"- {job.title}{' (needs a GPU)' if job.cuda else ''}" for job in unmeasured), ""]
    if growth:
        lines += [
            "## Growth",
            "",
            "APA with a shared critic, 16 responses of 64 + 64 tokens, vocabulary 8,192, one size changed.",
        ]
        lines += ["Working memory is the peak beyond the weights, their gradients and the optimizer's two moments, the"]
        lines += ["median of the rounds. Prompts keep their 64 tokens.", ""]
        lines += [*dict.fromkeys(apart(record, facts) for record in growth_records), ""]
        for axis, points in growth.items():
            lines += [*growth_table(axis, points), ""]
    lines += [*METHOD, "", "## Tried, and did not pay", "", KEPT[0], kept(path), KEPT[1]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def kept(path: Path) -> str:
    """What the page that is there says between the marks."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if KEPT[0] not in text or KEPT[1] not in text:
        return NOTHING_TRIED
    return text.split(KEPT[0])[1].split(KEPT[1])[0].strip("\n")


def _sizes(job: Job) -> str:
    shape = job.shape
    return (
        f"hidden {shape.hidden} × {shape.layers} layers, {job.responses} responses an iteration, {job.passes} passes, "
        f"minibatch {job.minibatch}, {job.precision}, every response {job.response_tokens} tokens."
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


METHOD = f"""## What is compared

- **ours** (`ppo-…`, `apa-…`): the real training loop as `apa-train` runs it, everything not named above at its
  default. The name says objective and critic: a network of its own, a head on the policy's trunk, or an adapter (LoRA
  rank {LORA_RANK}, for the policy too, where the others train all weights). `apa-group` has no critic and groups of
  {GROUP}.
- **trl-ppo**: TRL's PPOTrainer with a critic of its own, a real optimizer step for every minibatch, no gradient
  checkpointing, no tables of samples. **trl-grpo**: TRL's GRPOTrainer, groups of {GROUP}, on the same prompts as
  `apa-group`; β {KL_COEF}, so that it takes the reference's pass as the others do. Both see an eighth of the prompts,
  whose lengths weigh on their ratios to the others.
- **floor**, the bare parts: a plain script that does what cannot be left out. transformers' `generate` with the dynamic
  cache, nothing recorded; a reward, a reference and a critic pass; for each minibatch the policy's forward and
  backward, the critic's, gradient clipping and a fused AdamW step. Logits at response positions only; rows sorted by
  length, padded on the right so that attention needs no mask, and cut into groups of the padded size that a trial in
  the warm-up found fastest. A contestant's floor has the critic's passes when its critic is a network of its own;
  adapters and groups have no floor.
- **seconds** run from the request for an iteration to its end, tracking included. `forward` is the reference's, the
  critic's and, for PPO, the policy's pass over the rollout.
- **memory** is the peak beyond the loaded weights; gradients and optimizer states are in it. On a CPU: VmHWM of the
  contestant's process, reset through /proc/self/clear_refs before every round, less its resident size once everything
  is loaded and every weight has been read; the highest of the rounds. On a GPU: torch's peak of allocated bytes less
  the bytes allocated then.
- No response ends early: ours and GRPO suppress ends of text, TRL's PPO does not look for them. All have the same
  number of threads.""".splitlines()
