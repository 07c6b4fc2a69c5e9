"""How soon apa-train begins to sample: nothing is imported before it is needed."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from command import environment

# What a run of the built-in task needs later or not at all.
LATER = (
    *("datasets", "matplotlib", "pandas", "peft", "pyarrow", "sklearn", "vllm", "wandb", "openai", "bitsandbytes"),
    "tensorboard",
)

UP_TO_THE_FIRST_TOKEN = """
import json, os, sys
from transformers import DynamicCache

def sampling(*args, **kwargs):
    print(json.dumps(sorted(sys.modules)), file=sys.stderr, flush=True)
    os._exit(0)

DynamicCache.__init__ = sampling
from apa_cli.commands.train import main
sys.exit(main(sys.argv[1:]))
"""
# What nothing can begin without: the libraries, and the two models that the task loads.
FLOOR = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationMixin
from apa_cli.assets.resolve import resolve_path
AutoTokenizer.from_pretrained(resolve_path("builtin:reviews/policy"))
AutoModelForCausalLM.from_pretrained(resolve_path("builtin:reviews/policy"))
AutoModelForSequenceClassification.from_pretrained(resolve_path("builtin:reviews/reward"))
"""


def processor_seconds(code, *arguments):
    """User and system time of a Python process, which other processes on the machine change little; and its stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def test_the_first_rollout_begins_soon(tmp_path):
    start, said = processor_seconds(UP_TO_THE_FIRST_TOKEN, f"output_dir={tmp_path / 'run'}")
    imported = {name.split(".")[0] for name in json.loads(said.splitlines()[-1])}
    assert "apa_cli" in imported
    assert not imported & set(LATER)
    floor, _ = processor_seconds(FLOOR)
    assert start < 1.4 * floor, f"{start:.1f} s of processor time until sampling, {floor:.1f} s for the libraries"
