"""The installed command, in a process of its own, for what ends before training."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apa_cli.config.keys import all_keys, groups
from apa_cli.config.sources import config_dir, recipes

COMMAND = Path(sys.executable).with_name("apa-train")


@pytest.fixture
def run(tmp_path: Path):
    if not COMMAND.exists():
        pytest.skip(f"{COMMAND} is not installed")

    def call(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | environment
        return subprocess.run([COMMAND, *argv], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    return call


def test_help_teaches(run):
    start = time.perf_counter()
    done = run("--help")
    seconds = time.perf_counter() - start
    assert (done.returncode, done.stderr) == (0, "")
    for name in [*recipes(), *groups(), *all_keys(), "config=mine.yaml", "--cfg job", "-m", "Exit code"]:
        assert name in done.stdout, name
    assert "${" not in done.stdout
    assert seconds < 2, f"{seconds:.1f} s; alone it takes well under one"


def test_help_and_bad_input_import_no_torch(tmp_path: Path):
    code = """
import sys
from apa_cli.commands.train import main
codes = main(["--help"]), main(["objective.kl_lamda=1"]), main(["--cfg", "job"])
heavy = {"torch", "transformers", "datasets", "peft", "numpy", "pyarrow", "wandb", "matplotlib", "rich"}
heavy &= set(sys.modules)
sys.exit(f"{codes} {heavy}" if heavy or codes != (0, 2, 0) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_cfg_job_shows_the_configuration(run, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("objective.kl_lambda: 0.7\n")
    done = run("config=mine.yaml", "objective=ppo", "--cfg", "job", "--package", "objective")
    assert (done.returncode, done.stderr) == (0, "")
    assert "name: ppo\nkl_lambda: 0.7\n" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("objective=", {f"objective={file.stem}" for file in (config_dir() / "objective").glob("*.yaml")}),
        ("objective.kl_lam", {"objective.kl_lambda=", "objective.kl_lambda_min=", "objective.kl_lambda_max="}),
        ("config=hh_pythia1b_", {"config=hh_pythia1b_apa", "config=hh_pythia1b_awr", "config=hh_pythia1b_ppo"}),
    ],
)
def test_shell_completion(run, typed: str, offered: set[str]):
    done = run("-sc", "query=bash", COMP_LINE=f"apa-train {typed}")
    assert set(done.stdout.split()) == offered


def test_a_reader_that_leaves_early(run, tmp_path: Path):
    done = subprocess.run(
        f"{COMMAND} --help | head -1", shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("apa-train: align")
    assert done.stderr == ""


def test_version(run):
    from apa_cli import __version__

    assert run("--version").stdout == f"apa-train {__version__}\n"


def test_the_examples_of_the_help_compose():
    import shlex

    from apa_cli.config.compose import compose_train
    from apa_cli.config.help_text import render

    examples = [line.split("  ")[1] for line in render().splitlines() if line.startswith("  apa-train")]
    alone = [example for example in examples if " -m " not in example and "config=mine.yaml" not in example]
    assert len(alone) >= 5
    for example in alone:
        compose_train([word for word in shlex.split(example)[1:] if word != "--cfg job"])
