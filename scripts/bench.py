"""Measure apa-train beside TRL's trainers and beside the bare parts, and write docs/performance.md.

    python scripts/bench.py                    everything this machine can run: about 25 minutes on two CPU cores
    python scripts/bench.py --jobs hh          one job: its figures on the page are new, the others' stay
    python scripts/bench.py --rewrite          none: the page, from what was measured
    python scripts/bench.py --quick            small sizes, to see that it runs: two minutes, figures without meaning

Contestants take turns, one iteration each; medians over rounds. What was measured of each job is kept in a folder
beside the page, with hardware, versions, date and commit, and not measured again unless the code, the sizes or the
versions changed. TRL takes part where it is installed (pip install .[bench]).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "src")]

from benchmark import gpu, growth, page, records, summary  # noqa: E402
from benchmark.jobs import JOBS, Contestant, Job, compiled, contestants, quick  # noqa: E402
from benchmark.records import Record  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
HH = (ROOT.parent / "shared/data/hh/harmless-base-test.jsonl.gz", ROOT / "tests/data/hh_sample.jsonl")
GROWTH = "growth"
QUICK = ("hh", "pythia-410m", "llama-7b-lora", GROWTH)
ITERATIONS = 12  # prompts are laid out for so many; more rounds than that are refused


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    device = _device(arguments.device)
    here = [job for job in JOBS if device == "cuda" or not job.cuda or arguments.quick]
    names = arguments.jobs or (QUICK if arguments.quick else [*(job.name for job in here), GROWTH])
    names = [] if arguments.rewrite else names
    for job in JOBS:
        if job.name not in names:
            continue
        if job not in here:
            print(f"{job.name} needs a GPU: not measured", file=sys.stderr)
            continue
        sized = quick(job) if arguments.quick else job
        record = run(sized, chosen(sized, arguments.only, arguments.compile), arguments, device)
        print("\n".join(["", job.title, *page.table(summary.rows(sized, record.results)), ""]), flush=True)
    if GROWTH in names:
        grow(arguments, device)
    report(arguments)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, text: str, **settings: Any) -> None:
        parser.add_argument(name, help=text, **settings)

    known = ", ".join([*(job.name for job in JOBS), GROWTH])
    add("--jobs", f"which, with commas between them: {known} (default: all that this machine can run)", type=_names)
    add("--only", "contestants by name, with commas between them, such as ppo-separate,trl-ppo,floor", type=_names)
    add("--compile", "ours with training.compile=true too, for a page of its own in --output", action="store_true")
    add("--rounds", "measured rounds of a job, after one to warm up (default: %(default)s)", type=int, default=3)
    add("--minutes", "stop a job's rounds after so long, two measured at least (default: %(default)s)",
        type=float, default=7.0)  # fmt: skip
    add(
        "--data",
        "HH dialogues for the job hh, .jsonl or .jsonl.gz",
        type=Path,
        default=next(p for p in HH if p.exists()),
    )
    add("--output", "folder for models and logs (default: runs/bench)", type=Path)
    add(
        "--page",
        "the page to write (default: docs/performance.md; with --only, --compile or --quick: in --output)",
        type=Path,
    )
    add("--device", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", "of each contestant (default: all cores)", type=int, default=os.cpu_count() or 1)
    add("--fresh", "measure again what is finished", action="store_true")
    add("--rewrite", "measure nothing: write the page from what was measured before", action="store_true")
    add("--quick", "small sizes and one round, GPU jobs too", action="store_true")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.jobs or ()) - {job.name for job in JOBS} - {GROWTH}
    if unknown:
        parser.error(f"no job {', '.join(sorted(unknown))}: there are {known}")
    if not 2 <= arguments.rounds < ITERATIONS:
        parser.error(f"--rounds is from 2 to {ITERATIONS - 1}")
    arguments.data = arguments.data.resolve()
    arguments.output = (arguments.output or ROOT / "runs" / ("bench_quick" if arguments.quick else "bench")).resolve()
    whole = not (arguments.quick or arguments.only or arguments.compile)
    arguments.page = arguments.page or (PAGE if whole else arguments.output / "performance.md")
    return arguments


def chosen(job: Job, only: Sequence[str] | None, compiling: bool = False) -> list[Contestant]:
    from benchmark.ours import known_critics, knows_group

    everyone = contestants(job, with_trl=has_trl(), critics=known_critics(), group=knows_group())
    people = [contestant for contestant in everyone if only is None or contestant.name in only]
    plain = [person for person in people if person.kind == "ours" and person.value != "adapter"]
    return [*people, *(compiled(person) for person in plain if compiling and not job.lora)]


def run(job: Job, people: Sequence[Contestant], arguments: argparse.Namespace, device: str) -> Record:
    """What is measured of the job, or was when nothing changed since."""
    from benchmark import materials, rounds

    key = fingerprint(job, people, arguments, device)
    saved = records.load(arguments.page, job)
    if saved is not None and saved.key == key and not arguments.fresh:
        print(f"{job.name}: measured before, {saved.when}", flush=True)
        return saved
    folder = arguments.output / job.name
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{job.name}: models, tokenizer and prompts", flush=True)
    prompts = materials.build(job, folder, arguments.data, iterations=ITERATIONS)
    began = time.perf_counter()
    results = rounds.measure(
        job,
        people,
        folder=folder,
        data=prompts,
        device=device,
        threads=arguments.threads,
        rounds=1 if arguments.quick else arguments.rounds,
        minutes=arguments.minutes,
        say=lambda line: print(f"{time.perf_counter() - began:6.0f} s  {line}", flush=True),
    )
    failed = any("error" in result for result in results.values())
    record = Record(
        key="" if failed else key,  # a failure is tried again
        job=job,
        prompt_lengths=[[len(row["ids"]) for row in b] for b in json.loads((folder / "batches.json").read_text())],
        results=results,
        facts=facts(device, arguments.threads),
        commit=records.commit(ROOT),
        gpu={"bandwidth": gpu.copy_bandwidth(), "rate": gpu.matrix_rate()} if device == "cuda" else None,
    )
    records.save(arguments.page, record)
    if not failed:
        for name in ("policy", "reward"):
            shutil.rmtree(folder / name)
    return record


def grow(arguments: argparse.Namespace, device: str) -> None:
    arguments = argparse.Namespace(**{**vars(arguments), "rounds": 2})
    sizes = [(axis, size) for axis, along in growth.AXES.items() for size in (along[:1] if arguments.quick else along)]
    for job in dict.fromkeys(growth.case(*each) for each in sizes):  # the base stands on every axis
        run(job, [growth.contestant()], arguments, device)


def report(arguments: argparse.Namespace) -> None:
    """Verdicts on the terminal, the page from everything that was measured, and results.json in --output."""
    jobs = [quick(job) for job in JOBS] if arguments.quick else JOBS
    measured = [record for job in jobs if (record := records.load(arguments.page, job)) is not None]
    points, along = growth.measured(arguments.page)
    tables = {record.job.name: summary.rows(record.job, record.results) for record in measured}
    lines, shares = hardware(measured)
    if arguments.quick:  # nothing is judged by small sizes
        verdicts = [*summary.verdicts({}), *growth.verdicts({}), *shares]
    else:
        verdicts = [*summary.verdicts(tables), *growth.verdicts(points), *shares]
    for axis, found in points.items():
        print("\n".join(["", *page.growth_table(axis, found), ""]))
    print("\n".join(page.verdict_table(verdicts)))
    told = records.together([*measured, *along])
    if arguments.quick:
        told["sizes"] = "small ones, to see that it runs: the figures mean nothing"
    page.write(
        arguments.page,
        records=measured,
        growth=points,
        growth_records=along,
        verdicts=verdicts,
        facts=told,
        unmeasured=[job for job in JOBS if job.name not in tables],
        hardware=lines,
    )
    results = arguments.output / "results.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    everything = {
        "facts": told,
        "jobs": {name: [asdict(row) for row in rows] for name, rows in tables.items()},
        "growth": {axis: [asdict(point) for point in found] for axis, found in points.items()},
        "targets": [{**asdict(verdict), "verdict": verdict.word} for verdict in verdicts],
    }
    results.write_text(json.dumps(everything, indent=2), encoding="utf-8")
    print(f"Page      {arguments.page}\nMeasured  {records.folder(arguments.page)}\nFigures   {results}")


def hardware(measured: Sequence[Record]) -> tuple[list[list[str]], list[summary.Verdict]]:
    """Decoding against copy bandwidth and the update against the matrix rate; nothing without a GPU."""
    wanted = ("GPU: decoding, share of copy bandwidth", 0.5), ("GPU: update, share of the bf16 matrix rate", 0.4)
    lines, best = [], [0.0, 0.0]
    for record in measured:
        if record.gpu is None:
            continue
        job, lengths = record.job, record.prompt_lengths[1]
        for row in summary.rows(job, record.results):
            contestant = next((c for c in chosen(job, [row.name]) if c.kind == "ours"), None)
            if contestant is None:
                continue
            bytes_read = gpu.decode_bytes(job.shape, lengths, job.response_tokens)
            decode = bytes_read / row.phases["generate"] / record.gpu["bandwidth"]
            update = gpu.update_flops(job, contestant, lengths) / row.phases["update"] / record.gpu["rate"]
            if job.cuda:
                best = [max(best[0], decode), max(best[1], update)]
                lines.append([job.title, row.name, f"{decode:.2f}", f"{update:.2f}"])
    if not lines:
        none = [summary.Verdict(what=w, target=f"≥ {least:g}", measured=None, met=None) for w, least in wanted]
        return [], none
    return lines, [
        summary.Verdict(what=what, target=f"≥ {least:g}", measured=share, met=share >= least)
        for (what, least), share in zip(wanted, best, strict=True)
    ]


def facts(device: str, threads: int) -> dict[str, str]:
    import torch

    names = ("torch", "transformers", "peft", "trl", "accelerate")
    versions = {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {os.cpu_count()} cores"
    return {
        "hardware": hardware,
        "threads": str(threads),
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": time.strftime("%Y-%m-%d"),
    }


def fingerprint(job: Job, people: Sequence[Contestant], arguments: argparse.Namespace, device: str) -> str:
    """Changes when anything does that the figures depend on."""
    digest = hashlib.sha256()
    for file in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts" / "benchmark").glob("*.py")]):
        digest.update(file.read_bytes())
    settings = [arguments.rounds, arguments.minutes, arguments.threads, str(arguments.data)]
    told = facts(device, arguments.threads)
    del told["date"]
    digest.update(json.dumps([asdict(job), [asdict(p) for p in people], settings, told]).encode())
    return digest.hexdigest()


def has_trl() -> bool:
    return importlib.util.find_spec("trl") is not None


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _device(asked: str) -> str:
    import torch

    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    sys.exit(main())
