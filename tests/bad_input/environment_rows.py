"""The place and the process: folders that cannot be made or read, devices that are absent."""

from __future__ import annotations

import os

from bad_input.damage import both, file, folder, mode, spoilt
from bad_input.harness import Row

ROWS = [
    Row(name="output_dir is a file", command="apa-train config=base.yaml output_dir=taken/run", make=file("taken", ""),
        line="output_dir: taken is a file; name a folder: output_dir=DIR"),
    Row(name="output_dir in a place that holds no folders", command="apa-train config=base.yaml output_dir=/proc/nowhere/run",
        line="output_dir: no folder '/proc/nowhere' can be made: No such file or directory; name another: output_dir=DIR"),
    Row(name="output_dir with a name too long", command=f"apa-train config=base.yaml output_dir={'x' * 300}",
        line="output_dir: no folder 'xxx…' can be made: File name too long; name another: output_dir=DIR"),
    Row(name="a folder for the lock", command="apa-train config=base.yaml", make=folder("run/.lock"),
        line="output_dir: …run/.lock is not the lock of a run; move it away, or choose another folder"),
    Row(name="no CUDA here", command="apa-train config=base.yaml device=cuda",
        line="device: cuda asked for, but torch sees no CUDA device; use device=auto or device=cpu"),
    Row(name="no such device", command="apa-train config=base.yaml device=tpu",
        line="device: 'tpu' is not a choice; did you mean cpu? choose one of auto, cpu, cuda"),
]  # fmt: skip

# For a process that has to heed permissions, which the superuser's need not.
FORBIDDEN = [
    Row(name="a configuration", command="apa-train config=mine.yaml", make=both(file("mine.yaml", "seed: 1\n"), mode("mine.yaml", 0)),
        line="mine.yaml: cannot be read: Permission denied; give a text file that holds YAML"),
    Row(name="the place of the run", command="apa-train config=base.yaml output_dir=locked/run", make=both(folder("locked"), mode("locked", 0o555)),
        line="output_dir: no permission to write in …/locked; name another folder: output_dir=DIR"),
    Row(name="the working folder", command="apa-train", make=mode(".", 0o555),
        line="output_dir: no permission to write in …; name another folder: output_dir=DIR"),
    Row(name="a checkpoint", command="apa-eval checkpoint=run/checkpoints/iter_000002 evaluation.prompts=2",
        make=both(spoilt("run"), mode("run/checkpoints/iter_000002/manifest.json", 0)),
        line="checkpoint: …/manifest.json cannot be read (…Permission denied…); give another checkpoint of the run"),
    Row(name="the metrics of a run", command="apa-report run", make=both(spoilt("run"), mode("run/metrics.jsonl", 0)),
        line="run: …Permission denied…; …"),
    Row(name="the place of a report", command="apa-report run --output locked/report",
        make=both(spoilt("run"), folder("locked"), mode("locked", 0o555)),
        line="--output: no permission to write in …/locked; name another folder: --output DIR"),
]  # fmt: skip

SUPERUSER = os.geteuid() == 0
