"""Whatever the command and its outcome: files that were there and are no run's own are the same, byte for byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest
from runs import SMALL

from apa_cli.commands import eval as eval_command
from apa_cli.commands import report as report_command
from apa_cli.commands import train as train_command

TINY = (*SMALL, "training.iterations=3", "training.epochs_per_rollout=1", "evaluation.prompts=1", "evaluation.every=0")
TINY += ("training.minibatch_size=4",)
# Names that the commands write, names like those that they use for a while, and names of nobody's.
NAMES = """
config.yaml overrides.yaml versions.json run.log metrics.jsonl samples.jsonl summary.json report.md report.html
report.csv sweep.md multirun.yaml eval.json samples.html failed.json final/model.safetensors
final/mine/notes.txt plots/kl.png plots/mine.png plots/frontier.png checkpoints/latest checkpoints/best
checkpoints/best.json checkpoints/x checkpoints/iter_000001/mine.txt checkpoints/iter_000002/policy/mine.bin
checkpoints/iter_000003/policy/config.json checkpoints/iter_000003/policy/mine.bin
checkpoints/iter_000001_backup/x checkpoints/.iter_000003.partial/x checkpoints/.mine.partial
checkpoints/.iter_000009.old/x .final.partial/x .config.yaml.partial metrics.jsonl.tmp .lock .apa-cli
wandb/run-id .mine.old/x notes.txt mine.yaml seed=1/config.yaml seed=1/x evaluation/notes.txt
evaluation/final/eval.md .locks/seed=1 .conflicts/seed=1.json Thumbs.db deep/er/x
""".split()  # noqa: SIM905


def plant(folder: Path, draw: Random, count: int) -> dict[Path, bytes]:
    """Files of the user's at names that are free."""
    planted = {}
    for name in draw.sample(NAMES, count):
        path = folder / name
        if os.path.lexists(path) or any(parent.is_file() for parent in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        planted[path] = draw.randbytes(draw.randint(0, 60))
        path.write_bytes(planted[path])
    return planted


def changed(planted: dict[Path, bytes]) -> list[str]:
    return [str(path) for path, content in planted.items() if not path.is_file() or path.read_bytes() != content]


@pytest.mark.parametrize("seed", range(8))
def test_in_a_folder_of_the_users(uninterrupted, tmp_path, monkeypatch, seed):
    """Refused, or a start that fails, or written beside: by each of the commands."""
    draw, run, out = Random(seed), uninterrupted("apa"), tmp_path / "place" / "out"
    monkeypatch.chdir(tmp_path)
    mine = plant(out, draw, draw.choice((1, 2, 6))) | plant(out.parent, draw, 2)
    training = (f"output_dir={out}", "reward.path=./gone", *draw.choice([(), ("resume=auto",)]))
    commands = (
        lambda: train_command.main([*training]),
        lambda: train_command.main(["-m", *training, "seed=1,2"]),
        lambda: eval_command.main([f"checkpoint={run}", f"output_dir={out}", "evaluation.prompts=1"]),
        lambda: report_command.main([str(run), "--output", str(out)]),
    )
    code = commands[seed % len(commands)]()
    assert changed(mine) == []
    assert code in ((2,) if seed % len(commands) < 2 else (0, 2))


def test_through_the_life_of_a_run(server, tmp_path, monkeypatch):
    """Killed, resumed, finished, gone on with, evaluated, reported: with new files of the user's before each."""
    draw, folder, mine = Random(100), tmp_path / "place" / "run", {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("def reward(prompts, responses):\n    raise ValueError\n")
    failing = ("reward.kind=function", "reward.path=null", f"reward.function={tmp_path}/bad.py:reward")
    stages = (
        lambda: server.run(folder, *TINY, "policy.path=./gone"),
        lambda: server.run(folder, *TINY, *failing),
        lambda: server.run(folder, *TINY, die_at=draw.randint(8, 40)),
        lambda: server.run(folder, *TINY, "resume=auto", die_at=draw.randint(8, 40)),
        lambda: server.run(folder, *TINY, "resume=auto", pictures=True),
        lambda: server.run(folder, f"resume={folder}", "training.iterations=4", "checkpoint.keep=1", pictures=True),
        lambda: eval_command.main([f"checkpoint={folder}", "evaluation.prompts=1"]),
        lambda: report_command.main([str(folder), "--output", str(folder.parent)]),
    )
    codes = []
    for stage in stages:
        mine |= plant(folder, draw, 3) if folder.exists() else {}
        mine |= plant(folder.parent, draw, 1)
        codes.append(stage())
        assert changed(mine) == []
        if codes[-1] in (1, 2):  # something of the user's is in the way: now without it
            for path in mine:
                path.unlink()
            shutil.rmtree(folder / "seed=1", ignore_errors=True)
            for empty in sorted(folder.rglob("*"), reverse=True):
                if empty.is_dir() and not any(empty.iterdir()):
                    empty.rmdir()
            mine = {}
            codes.append(stage())
    assert -9 in codes
    assert codes.count(0) >= 3, server.output.read_text()[-3000:]


@pytest.mark.parametrize(("name", "code"), [("run.log", 2), ("plots", 2), (".lock", 2), ("checkpoints/latest", 0)])
def test_a_link_in_a_runs_folder_is_not_followed(uninterrupted, server, tmp_path, name, code):
    """The run does not go on, or writes a file of its own in the link's place; what the link leads to stays."""
    folder, victim = tmp_path / "run", tmp_path / "victim"
    shutil.copytree(uninterrupted("apa"), folder)
    place = folder / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    (victim / "overview.png").mkdir(parents=True) if name == "plots" else victim.write_text("mine")
    place.symlink_to(victim)
    assert server.run(folder, f"resume={folder}", "training.iterations=5", pictures=True) == code
    eval_command.main([f"checkpoint={folder}", "evaluation.prompts=1"])
    assert victim.is_dir() or victim.read_text() == "mine"
    assert [path.name for path in victim.rglob("*")] == (["overview.png"] if name == "plots" else [])
