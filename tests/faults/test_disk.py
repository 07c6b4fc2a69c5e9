"""A disk that is really full, read-only folders, damaged checkpoints, and two runs on one folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from runs import SMALL, assert_same_run, latest, metrics

# Fills the file system at one iteration and frees it at a later one. Counts calls: evaluations, then rollouts.
FILLING = """
import os
from apa_cli.assets import grammar

calls = 0

def reward(prompts, responses):
    global calls
    calls += 1
    if calls == {fill_at} and not os.path.exists({filler!r} + ".never"):
        with open({filler!r}, "wb") as file:
            try:
                while True:
                    file.write(bytes(65536))
                    file.flush()
            except OSError:
                pass
    if calls == {free_at}:
        os.unlink({filler!r})
    return grammar.sentiment(prompts, responses)
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 80 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"may not mount a file system here ({mounted.stderr.decode().strip()}); see the ulimit test")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def filling(tmp_path: Path, disk: Path, fill_at: int, free_at: int) -> tuple[str, ...]:
    file = tmp_path / "filling.py"
    file.write_text(FILLING.format(fill_at=fill_at, free_at=free_at, filler=str(disk / "filler")))
    return ("reward.kind=function", "reward.path=null", f"reward.function={file}:reward", "evaluation.prompts=0")


def test_a_full_disk_costs_checkpoints_but_not_the_run(server, small_disk, tmp_path):
    never = filling(tmp_path, tmp_path, 100, 100)
    assert server.run(tmp_path / "plain", *SMALL, *never) == 0, server.output.read_text()[-2000:]
    overrides = filling(tmp_path, small_disk, 2, 3)
    assert server.run(small_disk / "run", *SMALL, *overrides) == 0, server.output.read_text()[-2000:]
    log = (small_disk / "run" / "run.log").read_text()
    assert "the checkpoint of iteration 2 could not be saved (No space left on device); iter_000001 is kept" in log
    assert metrics(small_disk / "run") == metrics(tmp_path / "plain")
    assert latest(small_disk / "run").name == "iter_000004"
    assert list((small_disk / "run" / "checkpoints").glob(".*")) == []


def test_a_disk_that_stays_full_ends_in_exit_1_with_the_state_elsewhere(server, small_disk, tmp_path):
    (tmp_path / "other").mkdir()
    overrides = filling(tmp_path, small_disk, 3, 100)
    folder = small_disk / "run"
    before = len(server.output.read_text())
    code = server.run(folder, *SMALL, *overrides, variables={"TMPDIR": str(tmp_path / "other")})
    output = server.output.read_text()[before:]
    assert code == 1, output
    assert "the end of training could not be saved (No space left on device); its state is kept in" in output
    assert "Traceback" not in output
    assert latest(folder).name == "iter_000002"
    assert not (folder / "summary.json").exists()
    (small_disk / "filler").unlink()
    (small_disk / "filler.never").touch()
    (rescued,) = (tmp_path / "other").glob("apa_run_*")
    assert server.run(rescued, f"resume={rescued}") == 0, server.output.read_text()[-2000:]
    assert [line["iteration"] for line in metrics(rescued)] == [1, 2, 3, 4]
    # and the run itself goes on from its last good checkpoint
    assert server.run(folder, f"resume={folder}") == 0
    assert metrics(folder) == metrics(rescued)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(server, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    assert server.run(folder, *SMALL, terminate_at=14) == 130
    names = sorted(path.name for path in (folder / "checkpoints").glob("iter_*"))
    assert names == ["iter_000002", "iter_000003", "iter_000003_part"]
    weights = folder / "checkpoints" / "iter_000003_part" / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    (folder / "checkpoints" / "iter_000003" / "trainer_state" / "optimizer.safetensors").unlink()
    before = len(server.output.read_text())
    assert server.run(folder, f"resume={folder}") == 0
    output = server.output.read_text()[before:]
    assert "iter_000003_part is left out" in output and "is damaged: not as it was written" in output
    assert "iter_000003 is left out" in output and "lacks trainer_state/optimizer.safetensors" in output
    assert "resuming from iter_000002: 2 iterations done" in output
    assert_same_run(folder, uninterrupted("apa"))


def test_a_run_is_copied_and_goes_on(server, uninterrupted, tmp_path):
    """`scp -r` makes a folder of a link; a file manager leaves a file of its own."""
    folder = tmp_path / "copied"
    run = tmp_path / "run"
    assert server.run(run, *SMALL, terminate_at=14) == 130
    (run / "checkpoints" / "latest").unlink()
    (run / "checkpoints" / "latest").symlink_to("iter_000003_part")  # as older versions wrote it
    shutil.copytree(run, folder)
    (folder / "checkpoints" / "iter_000003_part" / "policy" / "Thumbs.db").write_text("x")
    copy = {path: path.read_bytes() for path in (folder / "checkpoints" / "latest").rglob("*") if path.is_file()}
    assert server.run(folder, *SMALL, "resume=auto") == 0
    assert metrics(folder) == metrics(uninterrupted("apa"))
    assert {path: path.read_bytes() for path in copy} == copy
    assert (folder / "checkpoints" / "iter_000003_part" / "policy" / "Thumbs.db").read_text() == "x"
    assert "holds policy/Thumbs.db, not of its manifest: ignored" in (folder / "run.log").read_text()


def test_a_branch_leaves_the_run_as_it_was(server, uninterrupted, tmp_path):
    run, branch = tmp_path / "run", tmp_path / "branch"
    shutil.copytree(uninterrupted("apa"), run, symlinks=True)
    checkpoint = run / "checkpoints" / "iter_000003"
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.rglob("*"))
    code = server.run(branch, f"resume={checkpoint}", "objective.kl_lambda=0.9", "resume_allow_changes=true")
    assert code == 0, server.output.read_text()[-2000:]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.rglob("*")) == before
    assert metrics(branch)[:4] == metrics(run)[:4]  # the evaluation before training, and three iterations
    assert metrics(branch)[4] != metrics(run)[4]
