"""The tables of a sweep, with figures worked by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from run_folders import row, write_grid, write_run

from apa_cli.commands.report import main
from apa_cli.runs.folders import find_runs, read_run
from apa_cli.runs.tables import Overview, settings_table, write_tables


def overview_of(folder: Path, **given) -> Overview:
    runs = [read_run(found) for found in find_runs([str(folder)])]
    return Overview(title="A sweep", folder=folder, runs=runs, **given)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = write_grid(tmp_path / "sweep", {(0.1, 0): (8, 3.0), (0.1, 1): (10, 3.4), (1.0, 0): (1, 1.0)})
    overrides = ("training.iterations=1", "objective.kl_lambda=1.0", "seed=1")
    broken = "no memory | left <here>"
    name = "objective.kl_lambda=1.0,seed=1"
    write_run(folder / name, [], finished=False, failed=broken, overrides=overrides, objective__kl_lambda=1.0, seed=1)
    return folder


def test_means_over_seeds(sweep: Path):
    header, rows = settings_table(overview_of(sweep).settings)
    assert header == ["setting", "runs", "reward", "evaluator", "KL, nats per response", "entropy, nats per token"]
    # Two seeds: half = 12.706 · |a − b| / 2: 12.706 · 0.2 = 2.541, 12.706 · 0.1 = 1.271, 12.706 · 1 = 12.71
    assert rows == [
        ["APA, λ 0.1", "2", "3.200 ± 2.541", "1.600 ± 1.271", "9.00 ± 12.71", "1.000 ± 0.000"],
        ["APA, λ 1", "1", "1.000", "0.500", "1.00", "1.000"],
    ]


def test_csv_has_a_row_for_each_run(sweep: Path):
    write_tables(overview_of(sweep), "sweep")
    with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "finished", "finished", "failed"]
    first, failed = rows[0], rows[-1]
    assert (first["seed"], first["objective.name"], first["objective.kl_lambda"]) == ("0", "apa", "0.1")
    assert (float(first["eval/kl"]), float(first["eval/reward"]), float(first["eval/evaluator"])) == (8.0, 3.0, 1.5)
    assert (first["seconds"], first["iterations"], first["measured_on"]) == ("12.5", "1", "held-out prompts")
    assert first["overrides"] == "training.iterations=1 objective.kl_lambda=0.1 seed=0"
    assert (failed["reason"], failed["seed"], failed["eval/kl"]) == ("no memory | left <here>", "1", "")


def test_the_report_command_touches_no_run(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/*")}
    assert main(["sweep", "--title", "Mine"]) == 0
    assert {path: path.stat().st_mtime_ns for path in sweep.glob("*/*") if path.parent.name != "plots"} == before
    assert sorted(p.name for p in sweep.iterdir() if p.is_file()) == [
        ".apa-cli",
        "report.csv",
        "report.html",
        "report.md",
    ]
    assert "Page      sweep/report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["sweep/objective.kl_lambda=0.1,seed=0"], "report"),
        (["sweep/objective.kl_lambda=0.1,seed=0", "sweep/objective.kl_lambda=1.0,seed=0"], "sweep"),
        (["sweep/objective*", "other"], "report"),
        (["sweep", "--output", "deep/er"], "deep/er"),
    ],
)
def test_where_the_report_lies(sweep: Path, tmp_path: Path, monkeypatch, arguments: list[str], where: str):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "other", [row(1, eval_kl=1.0, eval_reward=0.5)], finished=False)
    assert main(arguments) == 0
    assert (tmp_path / where / "report.html").is_file()
