"""Broken input, row by row: the exit code, the one line, and nothing left behind that looks like a result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bad_input import (
    config_rows,
    data_rows,
    environment_rows,
    evaluation_rows,
    folder_rows,
    model_rows,
    resume_rows,
    reward_rows,
)
from bad_input.harness import COMMANDS, Parts, Row, Said, check, contents, matches, run_forked, run_script, words

FAMILIES = {
    "config": config_rows.ROWS,
    "data": data_rows.ROWS,
    "model": model_rows.ROWS,
    "reward function": reward_rows.ROWS,
    "evaluation": evaluation_rows.ROWS,
    "report": evaluation_rows.REPORT_ROWS,
    "resume": resume_rows.ROWS,
    "environment": environment_rows.ROWS,
    "folder": folder_rows.ROWS,
}
ALL = {f"{family}, {row.name}": row for family, rows in FAMILIES.items() for row in rows}

# Through the real script as well: one of each command.
SAMPLE = ("config, a Python tag", "evaluation, a manifest that leaves its folder", "report, metrics with a broken line")


def test_no_two_rows_have_one_name():
    assert len(ALL) == sum(map(len, FAMILIES.values())) >= 60


@pytest.mark.parametrize("name", ALL)
def test_one_line(name: str, folder: Path, parts: Parts, capfd: pytest.CaptureFixture[str]):
    row = ALL[name]
    row.make(folder, parts)
    before = contents(folder)
    capfd.readouterr()
    code = COMMANDS[row.program](words(row, parts)[1:])
    check(row, Said(code, capfd.readouterr().err), folder, before)


@pytest.mark.parametrize("name", SAMPLE)
def test_one_line_of_the_script(name: str, folder: Path, parts: Parts):
    row = ALL[name]
    row.make(folder, parts)
    before = contents(folder)
    check(row, run_script(row, parts, folder), folder, before)


@pytest.mark.parametrize("row", environment_rows.FORBIDDEN, ids=[row.name for row in environment_rows.FORBIDDEN])
def test_what_may_not_be_touched(row: Row, folder: Path, parts: Parts):
    prefix: tuple[str, ...] = ()
    if environment_rows.SUPERUSER:
        if not shutil.which("setpriv"):
            pytest.skip("the superuser may read everything, and setpriv, which could take that away, is not here")
        powers = "-dac_override,-dac_read_search"
        prefix = ("setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}")
    row.make(folder, parts)
    before = contents(folder)
    try:
        check(row, run_script(row, parts, folder, prefix=prefix), folder, before)
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("function", reward_rows.HOSTILE)
def test_a_reward_function_that_spoils_its_process(function: str, folder: Path, parts: Parts):
    code, line = reward_rows.HOSTILE[function]
    row = reward_rows.mine("", f"mine.py:{function}", line)
    row.make(folder, parts)
    said = run_forked(row, parts, folder)
    assert said.code == code, said.errors
    assert matches(f"apa-train: error: {line}", said.errors.splitlines()[-1])


ODD = {"WANDB_MODE": "nonsense", "COLUMNS": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": None, "HOME": None}


@pytest.mark.parametrize("closed", ["", ">&- 2>&-"], ids=["ASCII alone", "nowhere to write"])
def test_odd_circumstances_do_not_matter(closed: str, folder: Path, parts: Parts):
    """A locale without a character for λ or an umlaut, no home, no width; at last no output either."""
    (folder / "überlauf.jsonl").write_text('{"prompt": "schönen Gruß λ 漢字"}\n{"prompt": "b"}\n', encoding="utf-8")
    command = "apa-train config=base.yaml 'data.path=\"überlauf.jsonl\"' tracking.console=plain evaluation.prompts=1"
    row = Row(name="", command=command, line="", environment=ODD)
    said = run_script(row, parts, folder, shell=closed)
    assert (said.code, said.errors) == (0, "")
    assert (folder / "run/summary.json").is_file()
    assert closed or "\\u2192" in said.output  # →
