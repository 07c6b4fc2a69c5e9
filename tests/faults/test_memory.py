"""A long run needs no more memory than a short one: nothing piles up from iteration to iteration."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import tiny_models
from command import apa_train

ITERATIONS = 240
ALLOWED = 1.01

# Called once an iteration, in the run's own process.
RECORDER = """
import gc
import os


gc.freeze()  # what the libraries hold need not be looked through each time


def reward(prompts, responses):
    gc.collect()
    with open("/proc/self/statm") as statm, open("resident.txt", "a") as record:
        record.write(f"{int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')}\\n")
    return [float(len(response)) for response in responses]
"""


def test_resident_size_stays(tmp_path: Path):
    policy = tiny_models.save_policy(tmp_path / "policy", tiny_models.make_tokenizer(), layers=1)
    (tmp_path / "recorder.py").write_text(RECORDER, encoding="utf-8")
    prompts = [json.dumps({"prompt": f"{a} {b}"}) for a in tiny_models.UNEVEN for b in tiny_models.UNEVEN]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    done = apa_train(
        tmp_path / "run",
        "config=own",
        f"policy.path={policy}",
        "reward.kind=function",
        "reward.function=recorder.py:reward",
        "data.path=prompts.jsonl",
        "evaluation.prompts=0",
        f"training.iterations={ITERATIONS}",
        "training.epochs_per_rollout=1",
        "training.minibatch_size=4",
        "rollout.batch_size=4",
        "generation.max_new_tokens=4",
        "checkpoint.every=0",
        "tracking.wandb.mode=disabled",
        "device=cpu",
        cwd=tmp_path,
        timeout=600,
        pictures=True,
    )
    assert done.code == 0, done.errors
    assert len(done.metrics) == ITERATIONS
    assert list((done.folder / "plots").glob("*.png"))
    sizes = [int(line) for line in (tmp_path / "resident.txt").read_text(encoding="utf-8").split()]
    assert len(sizes) == ITERATIONS
    early, late = statistics.median(sizes[60:90]), statistics.median(sizes[210:])
    shown = [round(size / 2**20, 1) for size in sizes[::20]]
    assert late <= ALLOWED * early, f"MiB at every 20th iteration: {shown}"
