"""A process that has imported what the commands import, and forks one child for each command that a test asks for.

Starting Python, torch and transformers anew would be most of a test's time. A child is a process of its own that runs
the command's `main` as the installed script does, and can be killed like any other.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

IMPORTED = (
    *("apa_cli.commands.train", "apa_cli.training.run", "apa_cli.commands.eval", "apa_cli.commands.report"),
    *("transformers.models.gpt_neox.modeling_gpt_neox", "peft", "matplotlib.figure"),
)


def child(request: dict[str, Any]) -> int:
    from huggingface_hub import constants

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None  # TMPDIR is asked anew
    constants.HF_HUB_CACHE = os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)  # was asked at import
    if request.get("terminate_at") is not None:
        terminate_at(request["terminate_at"], request["terminate_with"])
    if not request["pictures"]:
        leave_out_pictures()
    folder, program = Path(sys.executable).parent, request["program"]
    sys.argv, sys.path[0] = [str(folder / program), *request["words"]], str(folder)
    try:
        return importlib.import_module(f"apa_cli.commands.{program.removeprefix('apa-')}").main()
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
    from apa_cli.tracking import tracker

    tracker.draw_run = lambda folder: []


def serve() -> None:
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from apa_cli.config.compose import compose_train

    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # no test cuts the power
    for name in IMPORTED:
        importlib.import_module(name)
    compose_train(["output_dir=x"])  # reads and registers, once for all children, as the next line does
    get_checkpoint_conversion_mapping("llama")
    gc.freeze()  # children share what nobody writes to
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = child(json.loads(line))
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(ValueError, AttributeError):  # a reward function closed it
                    stream.flush()
            os._exit(code)  # to tear all of torch down takes two seconds
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
