"""Signals: a Slurm preemption, a closed terminal, a second signal, a deadline, and the same run after all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from command import SERVER, Running, wait_until
from runs import SMALL, VARIANTS, assert_same_run, latest, metrics


@pytest.mark.parametrize(
    ("minibatch", "variant"), [*((6, variant) for variant in VARIANTS), (1, "apa"), (12, "ppo with adaptive β, LoRA")]
)
def test_a_signal_in_an_update_is_resumed_inside_it(server, uninterrupted, tmp_path, variant, minibatch):
    """Iterations have 4 minibatches in 2 passes: the 6th is in the middle of a pass, the 12th ends an update."""
    folder = tmp_path / "run"
    assert server.run(folder, *SMALL, *VARIANTS[variant], terminate_at=minibatch) == 130
    finished, within = divmod(minibatch, 4)
    name = latest(folder).name
    assert name == (f"iter_{finished:06d}_part" if within else f"iter_{finished - 1:06d}_part")
    assert server.run(folder, f"resume={folder}") == 0, server.output.read_text()[-2000:]
    assert_same_run(folder, uninterrupted(variant))
    assert list((folder / "checkpoints").glob("*_part")) == []


def test_a_slurm_preemption(server, uninterrupted, tmp_path):
    """Slurm sends SIGCONT and SIGTERM to every process of the job, SIGKILL after its grace time, and requeues it."""
    folder = tmp_path / "run"
    words = (*SMALL, "checkpoint.every=0", "resume=auto")  # the very line of the batch script
    before = len(server.output.read_text())
    pid, metrics_file = server.start(folder, *words), folder / "metrics.jsonl"
    wait_until(lambda: metrics_file.exists() and metrics_file.read_text().count("\n") >= 2)
    os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGTERM)
    assert SERVER.wait(kill_after=60) == 130
    output = server.output.read_text()[before:]
    assert "SIGTERM" in output
    assert output.splitlines()[-1] == "apa-train: interrupted"
    assert "continue with resume=" in output
    assert (latest(folder) / "manifest.json").is_file()
    assert server.run(folder, *words) == 0, server.output.read_text()[-2000:]
    assert metrics(folder) == metrics(uninterrupted("apa"))


def test_a_signal_does_not_wait_for_a_reward_function_that_hangs(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import pathlib, time\ndef reward(prompts, responses):\n    pathlib.Path('begun').touch(); time.sleep(600)\n"
    )
    mine = ("reward.kind=function", "reward.path=null", "reward.function=mine.py:reward", "evaluation.prompts=0")
    run = Running("apa-train", "output_dir=run", *SMALL, *mine, cwd=tmp_path)
    wait_until((tmp_path / "begun").exists)
    run.signal(signal.SIGINT)
    done = run.finish(40)
    assert done.code == 130, done.errors
    assert "Traceback" not in done.output + done.errors


@pytest.mark.parametrize(("number", "hangs"), [(signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_an_evaluation_ends_at_a_signal_and_writes_nothing(tmp_path, number, hangs):
    body = "re.fullmatch('(a+)+b', 'a' * 60)" if hangs else "time.sleep(600)"
    begun = "import pathlib, re, time\ndef reward(prompts, responses):\n    pathlib.Path('begun').touch(); "
    (tmp_path / "mine.py").write_text(begun + body)
    words = ("checkpoint=builtin:reviews/policy", "config=reviews_apa", "output_dir=out", "evaluation.prompts=2")
    mine = ("reward.kind=function", "reward.path=null", "reward.function=mine.py:reward", "checkpoint.grace_seconds=1")
    run = Running("apa-eval", *words, *mine, cwd=tmp_path)
    wait_until((tmp_path / "begun").exists)
    run.signal(number)
    done = run.finish(60)
    if hangs:
        assert done.code == -signal.SIGKILL
        assert f"{number.name}: not done within 1 s, and Python does not respond; it hangs at:" in done.errors
        assert f'{tmp_path}/mine.py", line ' in done.errors
    else:
        assert (done.code, done.errors) == (130, "apa-eval: interrupted\n")
    assert not (tmp_path / "out").exists()


# An optimizer step that takes ten minutes.
WAITING = """
import sys, time
from apa_cli.training.steward.interrupts import Interrupts
with Interrupts(float(sys.argv[1])) as interrupts, interrupts.deferred():
    print("ready", flush=True)
    end = time.monotonic() + 600
    while time.monotonic() < end:
        time.sleep(0.01)
"""


def waiting(grace: str, code: str = WAITING) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code, grace], text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_second_signal_stops_at_once():
    process = waiting("600")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "apa-train: a second signal: stopped at once"


def test_the_grace_time_is_kept():
    process, started = waiting("1.0"), time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert 0.9 < time.monotonic() - started < 10
    assert "checkpoint.grace_seconds=1" in errors


def test_handlers_are_given_back_and_nothing_begins_after_a_signal():
    from apa_cli.training.steward.interrupts import Interrupted, Interrupts

    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with Interrupts(30.0) as interrupts, interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            with interrupts.immediate():
                raise AssertionError("the signal came before this stretch began")

    with pytest.raises(Interrupted):
        work()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_closed_terminal_and_slurms_other_signals_save(server, tmp_path, number):
    assert server.run(tmp_path / "run", *SMALL, terminate_at=6, terminate_with=number) == 130
    assert f"{number.name}: saving and stopping" in server.output.read_text()
    assert latest(tmp_path / "run").name == "iter_000001_part"


def test_nohup_is_respected():
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + WAITING.replace("+ 600", "+ 1")
    process = waiting("30", code)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0


def test_a_reward_that_holds_the_interpreter_ends_in_its_time(server, tmp_path):
    """In C code, so that no other thread and no handler of Python's runs."""
    (tmp_path / "mine.py").write_text(
        "import ctypes\ndef reward(prompts, responses):\n    ctypes.PyDLL(None).sleep(600)\n"
    )
    mine = ("reward.kind=function", "reward.path=null", f"reward.function={tmp_path}/mine.py:reward")
    assert server.run(tmp_path / "run", *SMALL, *mine, "reward.timeout_seconds=1") == -signal.SIGKILL
    output = server.output.read_text()
    assert "a call did not end in its time, and Python does not respond; it hangs at:" in output
    assert f'{tmp_path}/mine.py", line ' in output


@pytest.mark.parametrize(("signals", "why"), [(1, "SIGTERM: not done within 1 s"), (2, "a second signal")])
def test_signals_end_what_holds_the_interpreter(signals, why):
    process = waiting("1" if signals == 1 else "600", WAITING.replace("time.sleep(0.01)", "sum(range(10**13))"))
    for _ in range(signals):
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert f"apa-cli: {why}, and Python does not respond; it hangs at" in errors
