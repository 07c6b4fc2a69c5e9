"""Measure apa-train beside TRL's trainers, and write docs/performance.md.

    python scripts/bench.py                    everything this machine can run: about 25 minutes on two CPU cores
    python scripts/bench.py --jobs hh          one job: the figures of the others stay as they are
    python scripts/bench.py --quick            small sizes, to see that it runs: two minutes, figures without meaning

Contestants take turns, one iteration each; medians over rounds. What was measured, with hardware, versions, date and
commit, is kept in a folder beside the page, from which the overview between the page's markers, its picture and
tables/ are written. TRL takes part if it is installed (pip install .[bench]).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "src")]

from benchmark import materials, rounds, summary  # noqa: E402
from benchmark.jobs import JOBS, Contestant, Job, contestants, quick, read_job  # noqa: E402
from studies import page  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
HH = (ROOT.parent / "shared/data/hh/harmless-base-test.jsonl.gz", ROOT / "tests/data/hh_sample.jsonl")
KNOWN = ("fixed", "hh", "pythia", "llama", "growth", "prompt", *(job.name for job in JOBS))
QUICK = ("hh", "pythia-410m", "llama-7b-lora", "growth-base")
ALONE = {
    "shared": "## Growth\n\nAPA with a shared critic, minibatch 16; each row changes one size of the first.",
    "group": "## Growth with the prompt\n\nAPA without a critic, minibatch 16; a group's prompt is computed once, or "
    "in a row for each response.",
}
ITERATIONS = 12  # prompts are laid out for so many; more rounds than that are refused


def main(argv: Sequence[str] | None = None) -> int:
    import torch

    arguments, device = parse(argv), "cuda" if torch.cuda.is_available() else "cpu"
    for job in (job for job in JOBS if any(f"{job.name}-".startswith(f"{name}-") for name in arguments.jobs)):
        if job.cuda and device != "cuda" and not arguments.quick:
            print(f"{job.name} needs a GPU: not measured", file=sys.stderr)
            continue
        job = quick(job) if arguments.quick else job
        everyone = contestants(job, with_trl=importlib.util.find_spec("trl") is not None)
        run(job, [c for c in everyone if arguments.only is None or c.name in arguments.only], device, arguments)
    lines = report(arguments.page)
    page.write(arguments.page, "performance", lines, program="bench.py")
    print("\n".join(["", *lines[lines.index(page.DETAILS) :], "", f"Page      {arguments.page}"]))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--jobs", help=f"with commas between: {', '.join(KNOWN)} (default: all; fixed: each fixed-…)", type=names)
    add("--only", help="contestants by name, such as ppo-separate,trl-ppo; the page is in --output", type=names)
    add("--rounds", help="measured rounds of a job, after one to warm up (default: %(default)s)", type=int, default=3)
    add("--data", help="HH dialogues for the job hh, .jsonl or .jsonl.gz", type=Path,
        default=next(p for p in HH if p.exists()))  # fmt: skip
    add("--output", help="folder for models and logs (default: under runs/)", type=Path)
    add("--threads", help="of each contestant (default: all cores)", type=int, default=os.cpu_count() or 1)
    add("--quick", help="small sizes and one round, GPU jobs too; the page is in --output", action="store_true")
    add("--report-only", help="measure nothing: write the page from what is kept beside it", action="store_true")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.jobs or ()) - set(KNOWN):
        parser.error(f"no job {', '.join(sorted(unknown))}: there are {', '.join(KNOWN)}")
    if not 2 <= arguments.rounds < ITERATIONS:
        parser.error(f"--rounds is from 2 to {ITERATIONS - 1}")
    arguments.jobs = [] if arguments.report_only else arguments.jobs or (QUICK if arguments.quick else KNOWN)
    arguments.data = arguments.data.resolve()
    arguments.output = (arguments.output or ROOT / "runs" / ("bench_quick" if arguments.quick else "bench")).resolve()
    arguments.page = arguments.output / "performance.md" if arguments.quick or arguments.only else PAGE
    arguments.rounds = 1 if arguments.quick else arguments.rounds
    return arguments


def run(job: Job, people: Sequence[Contestant], device: str, arguments: argparse.Namespace) -> None:
    """Measure the job; what was measured, on what and when, is kept beside the page."""
    folder, threads = arguments.output / job.name, arguments.threads
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{job.name}: models, tokenizer and prompts", flush=True)
    prompts = materials.build(job, folder, arguments.data, iterations=ITERATIONS)
    common = {"folder": folder, "data": prompts, "device": device, "threads": threads}
    lengths = [len(row["ids"]) for batch in json.loads((folder / "batches.json").read_text("utf-8")) for row in batch]
    counted = {"mean_prompt": sum(lengths) / len(lengths), "matrix_flops": matrix_rate(device, threads, job.precision)}
    results = rounds.measure(job, people, **common, rounds=arguments.rounds)
    record = {"job": asdict(job), "results": results, "facts": facts(device, threads), "commit": commit(), **counted}
    file = arguments.page.with_suffix("") / f"{job.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
    if not any("error" in result for result in results.values()):
        for name in ("policy", "reward"):
            shutil.rmtree(folder / name)


def report(target: Path) -> list[str]:
    """From all records beside the page: the overview, and in detail every job's table, and one of growth."""
    files = {job: target.with_suffix("") / f"{job.name}.json" for job in JOBS}
    records = [json.loads(file.read_text("utf-8")) for file in files.values() if file.exists()]
    tables, grown, details = {}, dict[str, list[list[str]]](), []
    for record in records:
        job = read_job(record["job"])
        table = summary.rows(job, record["results"], record)
        if job.alone:
            for name, row in table.items():
                title = f"{job.title}{', a row for each response' if name.endswith('-plain') else ''}"
                words = f"{ALONE[job.alone]}\n\n{circumstances(record)}"
                grown.setdefault(words, []).append([title, *summary.cells(row)[:6], summary.cells(row)[8]])
            continue
        tables[job] = table
        failed = {name: result["error"] for name, result in record["results"].items() if "error" in result}
        columns = next(iter(table.values()), {})
        details += [
            *(f"## {job.title}", ""),
            f"hidden {job.shape.hidden} × {job.shape.layers} layers, {job.responses} responses per iteration, "
            f"{job.passes} passes, minibatch {job.minibatch}, {job.precision}, every response {job.response_tokens} "
            f"tokens. {circumstances(record)}",
            "",
            *page.table(["contestant", *columns], [[name, *summary.cells(row)] for name, row in table.items()]),
            *(f"\n{name} failed: {error}" for name, error in failed.items()),
            "",
        ]
    header = ["changed", "responses/s", "seconds", *summary.PHASES, "memory, MiB"]
    for words, rows in grown.items():
        details += [words, "", *page.table(header, rows), ""]
    missing = [f"{job.title}{' (needs a GPU)' if job.cuda else ''}" for job, file in files.items() if not file.exists()]
    missing = [f"- Not measured: {'; '.join(missing)}."] if missing else []
    picture = summary.draw(tables, target.parent / "images" / "performance.png")
    where = dict.fromkeys(circumstances(record, when=False) for record in records)
    return [*where, "", *summary.overview(tables), *missing, "", picture, "", page.DETAILS, *details[:-1]]


def circumstances(record: dict[str, Any], *, when: bool = True) -> str:
    told = record["facts"]
    where = "; ".join(f"{name} {value}" for name, value in told.items() if name != "date")
    date = f" {told['date']}, commit {record['commit']}," if when else ""
    return f"Measured{date} on {where}."


def facts(device: str, threads: int) -> dict[str, str]:
    import torch

    names = ("torch", "transformers", "peft", "trl", "accelerate")
    versions = {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)", info.read_text("utf-8") if info.exists() else "", re.MULTILINE)
    processor = model[1] if model else platform.machine()
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else f"{processor}, {os.cpu_count()} cores",
        "threads": str(threads),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": time.strftime("%Y-%m-%d"),
    }


def matrix_rate(device: str, threads: int, precision: str) -> float:
    """Operations per second of a square matrix product, the fastest of several."""
    import torch

    torch.set_num_threads(threads)
    size = 8192 if device == "cuda" else 2048
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        product = square @ square
        product[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def commit() -> str:
    """Of the code that is measured; a plus where files differ from it."""

    words = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
