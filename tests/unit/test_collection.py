"""Workers of pytest-xdist must collect the same tests, whenever and wherever in memory each of them does so."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def collecting(hash_seed):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "--quiet",
        "--numprocesses=0",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_in_different_seconds_collect_the_same_tests():
    first = collecting("1")
    time.sleep(2)
    second = collecting("2")
    ids = [[line for line in process.communicate()[0].splitlines() if "::" in line] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert len(ids[0]) > 1000
    assert ids[0] == ids[1]
