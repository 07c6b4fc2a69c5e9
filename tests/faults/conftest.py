"""Runs in processes of their own and, for each variant, a run that nothing interrupted."""

from __future__ import annotations

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
def uninterrupted(server, tmp_path_factory):
    """uninterrupted(variant): the folder of a run of it from beginning to end."""
    done = {}

    def run(variant):
        if variant not in done:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            assert server.run(folder, *SMALL, *VARIANTS[variant]) == 0, server.output.read_text()[-2000:]
            done[variant] = folder
        return done[variant]

    return run
