"""A reward function that fails in the middle of a run, through the real command."""

from __future__ import annotations

import time
from pathlib import Path

from command import Finished, apa_train

HEAD = "calls = 0\n\n\ndef reward(prompts, responses):\n    global calls\n    calls += 1\n"
FINE = "    return [float(len(response)) for response in responses]\n"


def run_with(tmp_path: Path, body: str, *overrides: str, fresh: bool = False) -> Finished:
    """Two iterations of the built-in policy; the second call does what `body` says."""
    file = tmp_path / "mine.py"
    file.write_text(f"{HEAD}    if calls == 2:\n        {body}\n{FINE}", encoding="utf-8")
    return apa_train(
        tmp_path / "run",
        *("rollout.batch_size=8", "training.minibatch_size=8", "training.iterations=2", "evaluation.prompts=0"),
        *("generation.max_new_tokens=8", "tracking.wandb.mode=disabled", "reward.kind=function"),
        f"reward.function={file}:reward",
        *overrides,
        fresh=fresh,
    )


def log_of(run: Finished) -> str:
    return (run.folder / "run.log").read_text(encoding="utf-8")


def lines_of(run: Finished) -> list[str]:
    return [line for line in run.errors.splitlines() if line.startswith("apa-train: error: ")]


def test_one_line_and_the_users_own_traceback(tmp_path: Path):
    body, said = "raise KeyError(responses[0][:0] + 'no such word')", "raised KeyError: 'no such word'"
    run = run_with(tmp_path, body)
    assert run.code == 2
    (line,) = lines_of(run)
    assert line.startswith(f"apa-train: error: reward.function: {tmp_path}/mine.py:reward {said}")
    assert "Traceback" not in run.errors + run.output
    assert len(run.metrics) == 1
    log = log_of(run)
    assert said in log
    trace = log[log.index("Traceback") :]
    assert f'mine.py", line 8, in reward\n    {body}' in trace
    assert "src/apa_cli" not in trace


def test_a_hang_ends_the_process_even_with_threads_of_its_own(tmp_path: Path):
    """At exit Python would wait for the threads of a pool."""
    hang = "import concurrent.futures, time; list(concurrent.futures.ThreadPoolExecutor(2).map(time.sleep, [600, 600]))"
    began = time.monotonic()
    run = run_with(tmp_path, hang, "reward.timeout_seconds=2", fresh=True)
    assert time.monotonic() - began < 100
    assert run.code == 2
    (line,) = lines_of(run)
    assert "mine.py:reward has not returned after 2 s; " in line
    log = log_of(run)
    trace = log[log.index("Traceback") :]
    assert f'mine.py", line 8, in reward\n    {hang}' in trace
    assert "concurrent/futures/" in trace
    assert "src/apa_cli" not in trace
