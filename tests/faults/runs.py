"""Runs that a test starts, kills, resumes and compares."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from command import ROOT, SERVER
from safetensors.numpy import load_file

from apa_cli.assets.resolve import resolve_path
from apa_cli.checkpoints.find import pointed_to

SMALL = (
    *("training.iterations=4", "training.epochs_per_rollout=2", "rollout.batch_size=4", "training.minibatch_size=2"),
    *("generation.max_new_tokens=5", "evaluation.prompts=4", "evaluation.every=2", "evaluation.resamples=10"),
    *("checkpoint.every=1", "tracking.wandb.mode=disabled", "tracking.console=plain", "optimizer.learning_rate=1e-2"),
)
_CACHE = tempfile.TemporaryDirectory(prefix="apa-cli-reference-")  # gone with the process
VARIANTS = {
    "apa": (),
    "awr, shared critic, bf16": ("objective=awr", "value=shared", "precision=bf16"),
    "ppo with adaptive β, LoRA": (
        *("objective=ppo", "objective.kl_target=0.5", "objective.kl_horizon=20"),
        *("policy=lora", "policy.adapter.dropout=0.1"),
    ),
    "steered apa, LoRA, shared critic, cosine, bf16": (
        *("objective.kl_target=0.5", "policy=lora", "value=shared", "precision=bf16"),
        *("optimizer.schedule=cosine", "optimizer.warmup_iterations=2"),
    ),
    "offline apa, warmed critic": (
        "rollout=offline",
        f"rollout.reference_cache={_CACHE.name}",
        f"data.path={ROOT / 'tests' / 'data' / 'logged_sample.jsonl'}",
        f"data.eval_path={resolve_path('builtin:reviews/eval_prompts.jsonl')}",
        "evaluation.reward.kind=none",
        "evaluation.reward.function=null",
        "value.warmup_iterations=2",
    ),
}


FAULT_POINTS = 90  # about as many as a whole run of these passes


@dataclass
class Runs:
    """Runs of apa-train in processes of their own, whose output piles up in one file."""

    output: Path

    def run(self, folder: Path, *overrides: str, **asked: Any) -> int:
        """Exit code of `apa-train output_dir=FOLDER OVERRIDES`; -9 where it was killed.

        kill_after: SIGKILL, or `kill_with`, from outside after so many seconds.
        die_at: by itself, at so many-th fault point.
        terminate_at: SIGTERM, or `terminate_with`, in its so many-th minibatch.
        """
        waiting = {name: asked.pop(name) for name in ("kill_after", "kill_with") if name in asked}
        self.start(folder, *overrides, **asked)
        return SERVER.wait(**waiting)

    def start(self, folder: Path, *overrides: str, die_at: int | None = None, **asked: Any) -> int:
        """The process id."""
        variables = {**asked.pop("variables", {}), **({} if die_at is None else {"APA_CLI_DIE_AT": str(die_at)})}
        asked = {"terminate_with": signal.SIGTERM, "pictures": False, **asked, "variables": variables}
        words = [f"output_dir={folder}", *overrides]
        return SERVER.start("apa-train", words, output=self.output, errors=self.output, **asked)


@dataclass
class Kills:
    at_fault_points: int = 0
    at_random_moments: int = 0

    @property
    def total(self) -> int:
        return self.at_fault_points + self.at_random_moments


def kill_until_done(
    server: Runs,
    folder: Path,
    overrides: Sequence[str],
    draw: Random,
    kills: Kills,
    *,
    limit: int,
    seconds: float,
    signals: Sequence[int] = (signal.SIGKILL,),
) -> None:
    """Start the run, kill it, resume it, and so on to its end; after `limit` kills in all, let it go.

    Half of the kills come from outside within `seconds` of the start, by one of `signals`; half at a fault point: a
    write or a rename. At a signal other than SIGKILL a run saves and ends with 130, or dies of it before it listens.
    """
    code = None
    while code != 0:
        again = (*overrides, "resume=auto")
        if kills.total >= limit:
            code = server.run(folder, *again)
        elif draw.random() < 0.5:
            code = server.run(folder, *again, die_at=draw.randint(1, FAULT_POINTS), pictures=True)
            kills.at_fault_points += code == -signal.SIGKILL
        else:
            number = draw.choice(signals)
            code = server.run(folder, *again, kill_after=draw.uniform(0.0, seconds), kill_with=number)
            kills.at_random_moments += code != 0
            if number != signal.SIGKILL and code in (130, -number):
                continue
        assert code in (0, -signal.SIGKILL), server.output.read_text()[-2000:]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock or a meter says."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if not measured(name)} for line in lines]


def latest(run: Path) -> Path:
    checkpoint = pointed_to(run / "checkpoints" / "latest")
    assert checkpoint is not None
    return checkpoint


def measured(name: str) -> bool:
    return name.startswith(("time/", "throughput/", "memory/"))


def assert_same_run(folder: Path, reference: Path) -> None:
    """The same metrics, samples, weights, critic and optimizer, to the last bit."""
    assert metrics(folder) == metrics(reference)
    assert (folder / "samples.jsonl").read_bytes() == (reference / "samples.jsonl").read_bytes()
    assert (folder / "summary.json").is_file()
    newest = [latest(run) for run in (folder, reference)]
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
