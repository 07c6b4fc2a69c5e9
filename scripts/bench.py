"""Measure apa-train beside TRL's trainers and beside the bare parts, and write docs/performance.md.

    python scripts/bench.py                    everything this machine can run: about 25 minutes on two CPU cores
    python scripts/bench.py --jobs hh          one job
    python scripts/bench.py --quick            small sizes, to see that it runs: two minutes, figures without meaning

Contestants take turns, one iteration each; medians over rounds. What is finished is kept in --output and not measured
again unless the code, the sizes or the versions changed. TRL takes part where it is installed (pip install .[bench]).
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "src")]

from benchmark import gpu, growth, page, summary  # noqa: E402
from benchmark.jobs import JOBS, Contestant, Job, contestants, quick  # noqa: E402

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
    finished: dict[str, tuple[Job, dict[str, Any]]] = {}
    for job in JOBS:
        if job.name not in names:
            continue
        if job not in here:
            print(f"{job.name} needs a GPU: not measured", file=sys.stderr)
            continue
        sized = quick(job) if arguments.quick else job
        finished[job.name] = sized, run(sized, chosen(sized, arguments.only), arguments, device)
        print("\n".join(["", job.title, *page.table(summary.rows(*finished[job.name])), ""]), flush=True)
    points = grow(arguments, device) if GROWTH in names else {}
    report(arguments, finished, points, device)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, text: str, **settings: Any) -> None:
        parser.add_argument(name, help=text, **settings)

    known = ", ".join([*(job.name for job in JOBS), GROWTH])
    add("--jobs", f"which, with commas between them: {known} (default: all that this machine can run)", type=_names)
    add("--only", "contestants by name, with commas between them, such as ppo-separate,trl-ppo,floor", type=_names)
    add("--rounds", "measured rounds of a job, after one to warm up (default: %(default)s)", type=int, default=3)
    add("--minutes", "stop a job's rounds after so long, two measured at least (default: %(default)s)",
        type=float, default=7.0)  # fmt: skip
    add(
        "--data",
        "HH dialogues for the job hh, .jsonl or .jsonl.gz",
        type=Path,
        default=next(p for p in HH if p.exists()),
    )
    add("--output", "folder for results, models and logs (default: runs/bench)", type=Path)
    add("--page", "the page to write (default: docs/performance.md, of a part or --quick: in --output)", type=Path)
    add("--device", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", "of each contestant (default: all cores)", type=int, default=os.cpu_count() or 1)
    add("--fresh", "measure again what is finished", action="store_true")
    add("--quick", "small sizes and one round, GPU jobs too", action="store_true")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.jobs or ()) - {job.name for job in JOBS} - {GROWTH}
    if unknown:
        parser.error(f"no job {', '.join(sorted(unknown))}: there are {known}")
    if not 2 <= arguments.rounds < ITERATIONS:
        parser.error(f"--rounds is from 2 to {ITERATIONS - 1}")
    arguments.data = arguments.data.resolve()
    arguments.output = (arguments.output or ROOT / "runs" / ("bench_quick" if arguments.quick else "bench")).resolve()
    whole = not (arguments.quick or arguments.jobs or arguments.only)
    arguments.page = arguments.page or (PAGE if whole else arguments.output / "performance.md")
    return arguments


def chosen(job: Job, only: Sequence[str] | None) -> list[Contestant]:
    from benchmark.ours import known_critics, knows_group

    everyone = contestants(job, with_trl=has_trl(), critics=known_critics(), group=knows_group())
    return [contestant for contestant in everyone if only is None or contestant.name in only]


def run(job: Job, people: Sequence[Contestant], arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """The job's raw results, from its file when nothing changed since they were measured."""
    from benchmark import materials, rounds

    file = arguments.output / f"{job.name}.json"
    key = fingerprint(job, people, arguments, device)
    if file.exists() and not arguments.fresh:
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["key"] == key:
            print(f"{job.name}: measured before, kept in {file}", flush=True)
            return dict(saved["results"])
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
    lengths = [[len(row["ids"]) for row in batch] for batch in json.loads((folder / "batches.json").read_text())]
    if not any("error" in result for result in results.values()):  # a failure is tried again
        record = {"key": key, "job": asdict(job), "prompt_lengths": lengths, "results": results}
        file.write_text(json.dumps(record), encoding="utf-8")
        for name in ("policy", "reward"):
            shutil.rmtree(folder / name)
    return results


def grow(arguments: argparse.Namespace, device: str) -> dict[str, list[growth.Point]]:
    arguments = argparse.Namespace(**{**vars(arguments), "rounds": 2})
    points: dict[str, list[growth.Point]] = {}
    for axis, sizes in growth.AXES.items():
        for size in sizes[:1] if arguments.quick else sizes:
            job = growth.case(axis, size)
            result = run(job, [growth.contestant()], arguments, device)["apa-shared"]
            if "error" not in result:
                points.setdefault(axis, []).append(growth.point(job, size, result))
        print("\n".join(["", *page.growth_table(axis, points.get(axis, [])), ""]), flush=True)
    return points


def report(
    arguments: argparse.Namespace,
    finished: Mapping[str, tuple[Job, dict[str, Any]]],
    points: Mapping[str, Sequence[growth.Point]],
    device: str,
) -> None:
    """Verdicts on the terminal, the page, and results.json beside the raw files."""
    tables = {name: summary.rows(job, results) for name, (job, results) in finished.items()}
    # nothing is judged by small sizes
    judged, along = ({}, {}) if arguments.quick else (tables, points)
    verdicts = [*summary.verdicts(judged), *growth.verdicts(along)]
    lines, shares = hardware(arguments, finished, device)
    verdicts += shares
    print("\n".join(page.verdict_table(verdicts)))
    told = facts(device, arguments.threads)
    if arguments.quick:
        told["sizes"] = "small ones, to see that it runs: the figures mean nothing"
    page.write(
        arguments.page,
        jobs=list(finished.values()),
        growth=points,
        verdicts=verdicts,
        facts=told,
        unmeasured=[job for job in JOBS if job.cuda and job.name not in finished],
        hardware=lines,
    )
    record = {
        "facts": told,
        "jobs": {name: [asdict(row) for row in rows] for name, rows in tables.items()},
        "growth": {axis: [asdict(point) for point in along] for axis, along in points.items()},
        "targets": [{**asdict(verdict), "verdict": verdict.word} for verdict in verdicts],
    }
    results = arguments.output / "results.json"
    results.write_text(json.dumps(record, indent=2), encoding="utf-8")
    print(f"Page      {arguments.page}\nFigures   {results}")


def hardware(
    arguments: argparse.Namespace, finished: Mapping[str, tuple[Job, dict[str, Any]]], device: str
) -> tuple[list[list[str]], list[summary.Verdict]]:
    """Decoding against copy bandwidth and the update against the matrix rate; nothing without a GPU."""
    wanted = ("GPU: decoding, share of copy bandwidth", 0.5), ("GPU: update, share of the bf16 matrix rate", 0.4)
    if device != "cuda":
        none = [summary.Verdict(what=w, target=f"≥ {least:g}", measured=None, met=None) for w, least in wanted]
        return [], none
    bandwidth, rate = gpu.copy_bandwidth(), gpu.matrix_rate()
    lines, best = [], [0.0, 0.0]
    for name, (job, results) in finished.items():
        if not job.cuda:
            continue
        lengths = json.loads((arguments.output / f"{name}.json").read_text())["prompt_lengths"][1]
        for row in summary.rows(job, results):
            contestant = next((c for c in chosen(job, [row.name]) if c.kind == "ours"), None)
            if contestant is None:
                continue
            decode = gpu.decode_bytes(job.shape, lengths, job.response_tokens) / row.phases["generate"] / bandwidth
            update = gpu.update_flops(job, contestant, lengths) / row.phases["update"] / rate
            best = [max(best[0], decode), max(best[1], update)]
            lines.append([job.title, row.name, f"{decode:.2f}", f"{update:.2f}"])
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


def _dialogues() -> Path:
    """The real file where a copy lies beside the repository, otherwise our own few dialogues in the same format."""
    return next(path for path in HH if path.exists())


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
