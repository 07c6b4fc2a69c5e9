"""A process that has imported what apa-train imports, and forks one child for each run that a test asks for.

Starting Python, torch and transformers anew for every kill would be most of a test's time. A child is a process of its
own that runs the command's `main`, and can be killed like any other.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from typing import Any

IMPORTED = (
    "apa_cli.commands.train",
    "apa_cli.training.run",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "peft",
    "matplotlib.figure",
)


def child(request: dict[str, Any]) -> int:
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # TMPDIR is asked anew
    if request["terminate_at"] is not None:
        terminate_at(request["terminate_at"], request["terminate_with"])
    if not request["pictures"]:
        leave_out_pictures()
    from apa_cli.commands.train import main

    try:
        return main(request["arguments"])
    except BaseException:
        traceback.print_exc()
        return 99


def terminate_at(minibatch: int, number: int) -> None:
    """Send this process a signal, for real, inside its so many-th minibatch."""
    from apa_cli.training import update

    plain, done = update.accumulate_gradients, [0]

    def counting(*arguments: Any, **named: Any) -> Any:
        done[0] += 1
        if done[0] == minibatch:
            os.kill(os.getpid(), number)
        return plain(*arguments, **named)

    update.accumulate_gradients = counting


def leave_out_pictures() -> None:
    """They are a third of such a small run's time."""
    from apa_cli.tracking import tracker

    tracker.draw_run = lambda folder: []


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = child(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
