"""One contestant in a process of its own: `python -m benchmark.worker SPEC.json CONTESTANT`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmark.jobs import Contestant, Job, Shape
from benchmark.stepper import Stepper


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job = Job(**{**spec["job"], "shape": Shape(**spec["job"]["shape"])})
    contestant = Contestant(**json.loads(sys.argv[2]))
    folder, data, device = Path(spec["folder"]), Path(spec["data"]), spec["device"]
    stepper = Stepper(device)
    import torch

    torch.set_num_threads(spec["threads"])
    if contestant.kind == "ours":
        from benchmark import ours

        ours.run(job, contestant, folder, data, device, stepper)
    elif contestant.kind == "floor":
        from benchmark import floor

        floor.run(job, folder, device, stepper)
    else:
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        from benchmark import rivals

        run = rivals.run_ppo if contestant.kind == "trl_ppo" else rivals.run_grpo
        run(job, folder, device, stepper)


if __name__ == "__main__":
    main()
