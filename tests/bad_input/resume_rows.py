"""Runs that cannot be gone on with as asked. The run itself stays as it was."""

from __future__ import annotations

import fcntl
from pathlib import Path

from bad_input.damage import Change, both, file, flip, folder, halve, put, set_json, spoilt, without
from bad_input.harness import Make, Parts, Row

NEWEST = "run/checkpoints/iter_000002"
GO_ON = "training.iterations=3"
GIVE = "give another checkpoint of the run"
NAME = "give the folder of a run, or one of its checkpoints"
_held: list[object] = []


def resume(name: str, words: str, line: str, *changes: Change, make: Make | None = None, begun: bool = False) -> Row:
    whole = spoilt("run", *changes)
    return Row(
        name=name, command=f"apa-train {words}", make=both(whole, make) if make else whole, line=line, begun=begun
    )


def checkpoint(name: str, line: str, *changes: Change) -> Row:
    """The newest checkpoint, named itself: no older one stands in for it."""
    within = tuple(lambda run, change=change: change(run / "checkpoints/iter_000002") for change in changes)
    return resume(name, f"resume={NEWEST} {GO_ON}", line, *within)


def locked(place: Path, parts: Parts) -> None:
    """As another process holds it: this one, by a descriptor of its own."""
    lock = (place / "run/.lock").open("w+")
    lock.write("process 7 on elsewhere")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held[:] = [lock]


def another_run(place: Path, parts: Parts) -> None:
    spoilt("run", name="second")(place, parts)


def outside(manifest_of: Path) -> None:
    """The manifest names a file beside the run."""
    text = (manifest_of / "manifest.json").read_text(encoding="utf-8")
    (manifest_of / "manifest.json").write_text(
        text.replace("trainer_state/state.json", "../../../secret"), encoding="utf-8"
    )


def not_a_line(name: str) -> Change:
    return lambda run: (run / name).write_text("{oops\n" + (run / name).read_text(encoding="utf-8"), encoding="utf-8")


ROWS = [
    resume("no such folder", "resume=gone", f"resume: no folder gone; {NAME}"),
    resume("a file", "resume=base.yaml", f"resume: base.yaml is neither a run (no config.yaml) nor a checkpoint in one; {NAME}"),
    resume("a folder of another kind", "resume=run/plots", f"resume: run/plots is neither a run (no config.yaml) nor a checkpoint in one; {NAME}"),
    resume("an empty folder", "resume=empty", f"resume: empty is neither a run (no config.yaml) nor a checkpoint in one; {NAME}", make=folder("empty")),
    resume("nothing named", "config=base.yaml resume=", "resume: empty text; give it a value, or leave it out"),
    resume("a run in the folder already", "config=base.yaml", "output_dir: …/run already holds a run; add resume=auto to resume it, or choose another folder"),
    resume("another run in the folder", "resume=run output_dir=second training.iterations=3", "output_dir: …/second already holds another run; choose a new folder for the branch", make=another_run),
    resume("a run that is at work", f"resume=run {GO_ON}", "output_dir: another run (process 7 on elsewhere) is at work in …/run; wait for it to end, or choose another folder", make=locked),
    resume("a new run in the folder of one that is at work", "config=base.yaml", "output_dir: another run (process 7 on elsewhere) is at work in …/run; wait for it to end, or choose another folder", make=locked),
    resume("an older checkpoint, into the same folder", "resume=run/checkpoints/iter_000001 training.iterations=3",
           "resume: iter_000001 is not the run's newest checkpoint (iter_000002 is); branch off from it with output_dir=NEW, or resume from the newest: resume=run"),
    resume("a sweep", "-m resume=run seed=1,2", "resume: names one run, and a sweep has several; use resume=auto: each run resumes on its own"),
    resume("another learning rate", f"resume=run {GO_ON} optimizer.learning_rate=1e-3",
           "resume: the configuration is not the run's: optimizer.learning_rate 1e-06 → 0.001; set it back, or add resume_allow_changes=true to accept the change"),
    resume("a choice of defaults", f"resume=run {GO_ON} objective=ppo",
           "objective=ppo: selects defaults, but the run has its own configuration; set keys, such as objective.name=VALUE"),
    resume("another objective", f"resume=run {GO_ON} objective.name=ppo",
           "resume: the configuration is not the run's: objective.name apa → ppo; set it back, or add resume_allow_changes=true to accept the change"),
    resume("fewer iterations than it has", "resume=run training.iterations=1",
           "training.iterations: 1, but the run has done 2; raise it, or branch off from an earlier checkpoint: resume=CHECKPOINT output_dir=NEW"),
    resume("other prompts", f"resume=run {GO_ON} data.path=few.jsonl resume_allow_changes=true",
           "data.path: the training prompts changed since the checkpoint (5 then, 2 now); …", make=file("few.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n'), begun=True),
    resume("every checkpoint damaged", f"resume=run {GO_ON}",
           "resume: run has no complete checkpoint to resume from: iter_000002 is left out: … lacks trainer_state/state.json; iter_000001 is left out: … has no manifest.json: …; to start over, choose another folder: output_dir=NEW, without resume",
           without("checkpoints/iter_000002/trainer_state/state.json"), without("checkpoints/iter_000001/manifest.json")),
    resume("every checkpoint damaged, auto", "config=base.yaml resume=auto", "resume: run has no complete checkpoint to resume from: …",
           halve("checkpoints/iter_000002/policy/model.safetensors"), halve("checkpoints/iter_000001/manifest.json")),
    resume("a finished run without checkpoints", f"resume=run {GO_ON}", "resume: run has no complete checkpoint to resume from, only summary.json and final and checkpoints/latest and metrics of 2 iterations; …",
           without("checkpoints/iter_000001"), without("checkpoints/iter_000002")),
    resume("a configuration that is not YAML", f"resume=run {GO_ON}", "run/config.yaml: line 2: not YAML: …; fix that line", put("config.yaml", "seed: [1\n")),
    *(resume(f"versions.json that is {text}", f"resume=run {GO_ON}", "run/versions.json: is damaged; fix it, or delete it to skip the comparison", put("versions.json", text))
      for text in ("[1", "[1]", '{"inputs": 5}', '{"inputs": {"policy.path": 3}}')),
    resume("metrics with a broken line", f"resume=run {GO_ON}", "…/run: …metrics.jsonl, line 1: not JSON (…); fix the line, or leave this run out", not_a_line("metrics.jsonl")),
    resume("samples with a broken line", f"resume=run {GO_ON}", "run/samples.jsonl: line 1: not JSON (…); fix the line, or move the file away", not_a_line("samples.jsonl"), begun=True),
    resume("full weights with an adapter now", f"resume=run {GO_ON} policy.adapter.r=2 resume_allow_changes=true", "resume: the checkpoint's weights decide this: policy.adapter.r 0 → 2; set it back, or start a new run"),
    checkpoint("a checkpoint without a manifest", f"resume: …/iter_000002 has no manifest.json: it is half-written or no checkpoint; {GIVE}", without("manifest.json")),
    checkpoint("a manifest cut short", f"resume: …/iter_000002/manifest.json cannot be read (…); {GIVE}", halve("manifest.json")),
    checkpoint("a manifest that leaves its folder", "resume: the manifest of …/iter_000002 names ../../../secret, outside its folder; do not use it", outside),
    checkpoint("damaged weights", f"resume: …/iter_000002/policy/model.safetensors is damaged: not as it was written; {GIVE}", flip("policy/model.safetensors")),
    checkpoint("a damaged optimizer", f"resume: …/iter_000002/trainer_state/optimizer.safetensors is damaged: not as it was written; {GIVE}", halve("trainer_state/optimizer.safetensors")),
    checkpoint("a checkpoint without its state", f"resume: …/iter_000002 lacks trainer_state/state.json; {GIVE}", without("trainer_state/state.json")),
    checkpoint("a manifest of another file's size", f"resume: …/manifest.json cannot be read (…); {GIVE}", set_json("manifest.json", "files", {"policy/model.safetensors": {"bytes": None, "sha256": ""}})),
]  # fmt: skip
