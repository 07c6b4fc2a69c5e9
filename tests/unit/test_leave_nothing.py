"""Stopping pytest leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SLEEPER = r"""
import subprocess, sys

def test_sleeps():
    code = "import subprocess\nfor _ in range(999): subprocess.Popen(['sleep', '99'])"
    child = subprocess.Popen([sys.executable, "-c", code])
    child.wait()
"""


def running(folder):
    """Processes that began for the test in `folder`."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"LEFT_BEHIND={folder}".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(tmp_path, workers, number):
    if (workers, number) == ("0", signal.SIGKILL):
        pytest.skip("nobody is left who could tidy up")
    (tmp_path / "test_sleeper.py").write_text(SLEEPER)
    (tmp_path / "conftest.py").write_text(
        "import leave_nothing\n\ndef pytest_configure(config):\n"
        "    leave_nothing.listen(worker=hasattr(config, 'workerinput'))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS), "LEFT_BEHIND": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len(running(tmp_path)) >= 8)  # and the child goes on beginning more
    process.send_signal(number)
    process.wait(timeout=30)
    wait_for(lambda: running(tmp_path) == [])


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
