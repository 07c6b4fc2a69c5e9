"""Runs in processes of their own and, for each variant, a run that nothing interrupted."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # runs.py is imported by its name

from runs import SMALL, VARIANTS, Runs


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "output.txt"
    output.touch()
    return Runs(output)


@pytest.fixture(scope="session")
def uninterrupted(server, tmp_path_factory, worker_id):
    """uninterrupted(variant): the folder of a run of it from beginning to end, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    place = base if worker_id == "master" else base.parent

    def run(variant):
        folder = place / f"uninterrupted{list(VARIANTS).index(variant)}"
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "summary.json").exists():
                assert server.run(folder, *SMALL, *VARIANTS[variant]) == 0, server.output.read_text()[-2000:]
        return folder

    return run
