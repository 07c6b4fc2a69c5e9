"""Sweeps through the real command: joblib with a broken member and again, submitit's local executor, Optuna, Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
from command import TINY, Running, apa_train, wait_until

REWARD = """
import os

def short(prompts, responses, **columns):
    return [-float(len(response)) for response in responses]

def broken_until_mended(prompts, responses, **columns):
    if not os.path.exists({mended!r}):
        raise RuntimeError("no reward today")
    return short(prompts, responses)
"""


def plugin(name: str) -> None:
    pytest.importorskip(f"hydra_plugins.{name}", reason=f"needs {name.replace('_', '-')}: pip install -e '.[dev]'")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_joblib_survives_a_broken_member_and_goes_on_later(tmp_path: Path):
    plugin("hydra_joblib_launcher")
    mended = tmp_path / "mended"
    (tmp_path / "my.py").write_text(REWARD.format(mended=str(mended)))
    sweep = tmp_path / "sweep"
    functions = f"reward.function={tmp_path}/my.py:broken_until_mended,{tmp_path}/my.py:short"
    command = ("-m", "sweep=joblib", "reward.kind=function", "reward.path=null", functions, *TINY, "device=cpu")
    own_threads = {"OMP_NUM_THREADS": None, "MKL_NUM_THREADS": None}
    first = apa_train(sweep, *command, **own_threads)
    assert first.code == 2, first.errors
    assert sorted(row["status"] for row in rows(sweep)) == ["failed", "finished"]
    [reason] = [row["reason"] for row in rows(sweep) if row["status"] == "failed"]
    assert "no reward today" in reason
    assert first.output.count("  failed: ") == first.output.count("no reward today") == 1
    assert "The same command again runs only what is not finished." in first.output
    assert "## Failed" in (sweep / "sweep.md").read_text(encoding="utf-8")
    assert (sweep / "plots" / "frontier.png").stat().st_size > 10_000
    [finished] = [folder for folder in sweep.iterdir() if (folder / "summary.json").exists()]
    threads = max(1, len(os.sched_getaffinity(0)) // 2)  # the members share out the cores
    versions = json.loads((finished / "versions.json").read_text(encoding="utf-8"))
    assert versions["device"].startswith(f"CPU, {threads} threads")

    mended.touch()
    before = state(finished)
    second = apa_train(sweep, *command, "hydra.launcher.n_jobs=1")
    assert (second.code, second.errors) == (0, ""), second.errors
    assert state(finished) == before
    assert second.output.count("already finished, not run again") == 1
    assert [row["status"] for row in rows(sweep)] == ["finished"] * 2
    assert list(sweep.glob("*.unfinished-*")) == []


def test_submitit_runs_members_in_processes_of_its_own(tmp_path: Path):
    plugin("hydra_submitit_launcher")
    sweep = tmp_path / "sweep"
    done = apa_train(sweep, "-m", "sweep=submitit_local", "policy.path=builtin:reviews/policy,gone", *TINY)
    assert done.code == 2, done.errors
    assert sorted(row["status"] for row in rows(sweep)) == ["failed", "finished"]
    assert done.output.count("policy.path: ") == 1  # its reason has come out of the other process
    assert list((sweep / ".submitit").glob("*/*.out"))


def test_optuna_searches_two_objectives_past_a_failed_trial(tmp_path: Path):
    plugin("hydra_optuna_sweeper")
    from omegaconf import OmegaConf

    (tmp_path / "my.py").write_text(
        "from pathlib import Path\n\n"
        "def fails_once(prompts, responses, **columns):\n"
        "    try:\n"
        "        Path(__file__).with_name('called').touch(exist_ok=False)\n"
        "    except FileExistsError:\n"
        "        return [-float(len(response)) for response in responses]\n"
        "    raise RuntimeError('once')\n"
    )
    reward = ("reward.kind=function", "reward.path=null", f"reward.function={tmp_path}/my.py:fails_once")
    command = ("-m", "sweep=optuna", "hydra.sweeper.n_trials=3", *reward, *TINY)
    done = apa_train(tmp_path / "sweep", *command)
    assert done.code == 2, done.errors
    table = rows(tmp_path / "sweep")
    assert sorted(row["status"] for row in table) == ["failed", "finished", "finished"]
    assert len({row["objective.kl_lambda"] for row in table}) == 3
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert 1 <= len(found.solutions) <= 2
    measured = {(float(row["eval/evaluator"]), float(row["eval/kl"])) for row in table if row["eval/kl"]}
    assert {tuple(solution["values"]) for solution in found.solutions} <= measured


def test_an_interrupted_sweep_still_gets_its_tables(tmp_path: Path):
    sweep = tmp_path / "sweep"
    members = "training.iterations=1,9999"  # the second would go on for hours
    run = Running("apa-train", "-m", f"output_dir={sweep}", *TINY[1:], members)
    wait_until(lambda: any(file.read_text("utf-8").count("\n") > 2 for file in sweep.glob("*/metrics.jsonl")))
    run.signal(signal.SIGINT)
    done = run.finish(90)
    saving = "warning: SIGINT: saving and stopping within 25 s (a second signal stops at once)"
    assert (done.code, done.errors) == (130, f"{saving}\napa-train: interrupted\n")
    assert sorted(row["status"] for row in rows(sweep)) == ["finished", "running or stopped"]
    assert "not finished: " in done.output
