"""Runs that a test starts, kills, resumes and compares."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from command import environment
from safetensors.numpy import load_file

SMALL = (
    "training.iterations=6",
    "training.epochs_per_rollout=2",
    "rollout.batch_size=4",
    "training.minibatch_size=2",
    "generation.max_new_tokens=5",
    "evaluation.prompts=4",
    "evaluation.every=3",
    "evaluation.resamples=10",
    "checkpoint.every=1",
    "tracking.wandb.mode=disabled",
    "tracking.console=plain",
    "optimizer.learning_rate=1e-2",
)
VARIANTS = {
    "apa": (),
    "awr, shared critic, bf16": ("objective=awr", "value=shared", "precision=bf16"),
    "ppo with adaptive β, LoRA": (
        "objective=ppo",
        "objective.kl_target=0.5",
        "objective.kl_horizon=20",
        "policy=lora",
        "policy.adapter.dropout=0.1",
    ),
    "apa, LoRA, shared critic, cosine, bf16": (
        "policy=lora",
        "value=shared",
        "precision=bf16",
        "optimizer.schedule=cosine",
        "optimizer.warmup_iterations=2",
    ),
}


class ForkServer:
    def __init__(self, output: Path) -> None:
        self.output = output
        output.touch()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self._line() == "ready"

    def run(
        self,
        folder: Path,
        *overrides: str,
        kill_after: float | None = None,
        die_at: int | None = None,
        terminate_at: int | None = None,
        variables: dict[str, str] | None = None,
    ) -> int:
        """Exit code of `apa-train output_dir=FOLDER OVERRIDES`; -9 where it was killed.

        kill_after: SIGKILL from outside after so many seconds. die_at: by itself, at so many-th fault point.
        terminate_at: SIGTERM in its so many-th minibatch.
        """
        named = dict(variables or {})
        if die_at is not None:
            named["APA_CLI_DIE_AT"] = str(die_at)
        request = {
            "arguments": [f"output_dir={folder}", *overrides],
            "environment": named,
            "output": str(self.output),
            "terminate_at": terminate_at,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        pid = int(self._line())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(pid, signal.SIGKILL)
        return int(self._line())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"the fork server is gone; see {self.output}"
        return line


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock or a meter says."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if not measured(name)} for line in lines]


def measured(name: str) -> bool:
    return name.startswith(("time/", "throughput/", "memory/"))


def assert_same_run(folder: Path, reference: Path) -> None:
    """The same metrics, samples, weights, critic and optimizer, to the last bit."""
    assert metrics(folder) == metrics(reference)
    assert (folder / "samples.jsonl").read_bytes() == (reference / "samples.jsonl").read_bytes()
    assert (folder / "summary.json").is_file()
    newest = [(run / "checkpoints" / "latest").resolve() for run in (folder, reference)]
    assert newest[0].name == newest[1].name
    files = [sorted(path.relative_to(place) for path in place.rglob("*.safetensors")) for place in newest]
    assert files[0] == files[1]
    for name in files[0]:
        tensors, expected = load_file(newest[0] / name), load_file(newest[1] / name)
        assert tensors.keys() == expected.keys()
        different = [key for key in tensors if tensors[key].tobytes() != expected[key].tobytes()]
        assert different == [], f"{name}: {different}"
    weights = [next((run / "final").glob("*.safetensors")).read_bytes() for run in (folder, reference)]
    assert weights[0] == weights[1]
