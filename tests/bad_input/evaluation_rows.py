"""What apa-eval and apa-report are given: damaged checkpoints, runs that are none, folders that cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

from bad_input.config_rows import BOMB
from bad_input.damage import both, file, flip, folder, halve, put, spoilt, without
from bad_input.harness import Make, Row

LATEST = "checkpoints/iter_000002"
MANIFEST = f"{LATEST}/manifest.json"
GIVE = "give another checkpoint of the run"


WHOLE = spoilt("run")


def checkpoint(name: str, line: str, *changes: object, given: str = f"run/{LATEST}", begun: bool = False) -> Row:
    return Row(name=name, command=f"apa-eval checkpoint={given} evaluation.prompts=2", make=spoilt("run", *changes),
               line=line, begun=begun)  # fmt: skip


def evaluate(name: str, words: str, line: str, make: Make = WHOLE, **more: bool) -> Row:
    return Row(name=name, command=f"apa-eval {words}", make=make, line=line, **more)


def report(name: str, words: str, line: str, make: Make = WHOLE) -> Row:
    return Row(name=name, command=f"apa-report {words}", make=make, line=line)


def renamed(old: str, new: str):
    """The manifest calls one of its files by another name."""

    def change(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"][new] = manifest["files"].pop(old)
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return change


def aside(folder: Path) -> None:
    (folder / LATEST).rename(folder / "checkpoints/.iter_000002.partial")


ROWS = [
    checkpoint("no manifest", f"checkpoint: …/{LATEST} has no manifest.json: it is half-written or no checkpoint; {GIVE}", without(MANIFEST)),
    checkpoint("a manifest that is not JSON", f"checkpoint: …/{MANIFEST} cannot be read (…); {GIVE}", halve(MANIFEST)),
    checkpoint("a manifest that is a list", f"checkpoint: …/{MANIFEST} cannot be read (…); {GIVE}", put(MANIFEST, "[]")),
    checkpoint("a manifest of other bytes", f"checkpoint: …/{MANIFEST} cannot be read (…); {GIVE}", put(MANIFEST, b"\xff\xfe\x00")),
    checkpoint("a manifest of no files", f"checkpoint: …/{MANIFEST} cannot be read (it names no files); {GIVE}", put(MANIFEST, '{"format": 1, "files": {}}')),
    checkpoint("a manifest that leaves its folder", "checkpoint: the manifest of … names ../../secret, outside its folder; do not use it",
               renamed("value/value_head.safetensors", "../../secret")),
    checkpoint("a manifest with a whole path", "checkpoint: the manifest of … names /etc/hostname, outside its folder; do not use it",
               renamed("value/value_head.safetensors", "/etc/hostname")),
    checkpoint("a damaged file", f"checkpoint: …/{LATEST}/policy/model.safetensors is damaged: not as it was written; {GIVE}", flip(f"{LATEST}/policy/model.safetensors")),
    checkpoint("a file cut short", f"checkpoint: …/{LATEST}/policy/model.safetensors is damaged: not as it was written; {GIVE}", halve(f"{LATEST}/policy/model.safetensors")),
    checkpoint("a missing file", f"checkpoint: …/{LATEST} lacks trainer_state/optimizer.safetensors; {GIVE}", without(f"{LATEST}/trainer_state/optimizer.safetensors")),
    checkpoint("a damaged file of the run's latest", f"checkpoint: …/{LATEST}/policy/model.safetensors is damaged: not as it was written; {GIVE}", flip(f"{LATEST}/policy/model.safetensors"), given="run/checkpoints"),
    checkpoint("half-written", "checkpoint: run/checkpoints/.iter_000002.partial was never finished; give another checkpoint of the run", aside,
               given="run/checkpoints/.iter_000002.partial"),
    checkpoint("one of the run's folders that is no model", "checkpoint: run/plots is neither a run nor a model (…); …", given="run/plots"),
    checkpoint("a run whose config.yaml is gone", "checkpoint: run is neither a run nor a model (…); …", without("config.yaml"), given="run"),
    checkpoint("a run whose config.yaml is not YAML", "run/config.yaml: line 2: not YAML: …; fix that line", put("config.yaml", "seed: [1\n"), given="run"),
    checkpoint("a run whose config.yaml is of another version", "run/config.yaml: objective.kl_mu: unknown key; …",
               lambda f: (f / "config.yaml").write_text((f / "config.yaml").read_text() + "objective.kl_mu: 1\n"), given="run"),
    checkpoint("final/ with damaged weights", "checkpoint: cannot load …/run/final (Error while deserializing header: …); save the model again, copy it again, or update transformers", halve("final/model.safetensors"), given="run", begun=True),
    checkpoint("final/ without weights", "checkpoint: …/run/final has no safetensors weights; convert it once with model.save_pretrained(folder)", without("final/model.safetensors"), given="run", begun=True),
    checkpoint("final/ that is empty", "checkpoint: …/run/final holds no model; give another checkpoint", without("final/config.json"), given="run"),
    evaluate("an empty folder", "checkpoint=empty", "checkpoint: empty is neither a run nor a model (…); give a run's folder, …", folder("empty")),
    evaluate("a file", "checkpoint=base.yaml", "checkpoint: base.yaml is a file; give the folder it is in"),
    evaluate("nothing there", "checkpoint=run/checkpoints/iter_000009", "checkpoint: no folder run/checkpoints/iter_000009; …"),
    evaluate("a pattern that nothing matches", "'checkpoint=run/checkpoints/x*'", "checkpoint: nothing matches run/checkpoints/x*; …"),
    evaluate("no checkpoint said", "seed=1", "checkpoint: not given; say what to judge: apa-eval checkpoint=runs/mine"),
    evaluate("an empty checkpoint", "checkpoint=", "checkpoint: empty; say what to judge: apa-eval checkpoint=runs/mine"),
    evaluate("an empty list", "checkpoint=[]", "checkpoint: empty; say what to judge: apa-eval checkpoint=runs/mine"),
    evaluate("a list within a list", "checkpoint=[[run]]", "checkpoint: nothing matches [run]; …"),
    evaluate("a group taken away", "checkpoint=run ~objective", "objective: cannot be deleted; …"),
    evaluate("a list that does not close", "checkpoint=[run", "checkpoint: [run does not end its list; write a list such as [runs/a,runs/b]"),
    evaluate("two checkpoints", "checkpoint=run checkpoint=run", "checkpoint: given twice; write a list: checkpoint=[runs/a,runs/b]"),
    evaluate("an unknown option", "checkpoint=run --prompts 3", "--prompts: unknown option; see apa-eval --help"),
    evaluate("an unknown key", "checkpoint=run evaluation.promts=3", "evaluation.promts: unknown key; did you mean evaluation.prompts?"),
    evaluate("no prompts", "checkpoint=run", "evaluation.prompts: 0, so there is nothing to evaluate on; set it, for instance to 128"),
    evaluate("an output folder that is a file", "checkpoint=run evaluation.prompts=2 output_dir=base.yaml", "output_dir: base.yaml is a file; name a folder: output_dir=DIR"),
    evaluate("a model of no run", "checkpoint={policy} evaluation.prompts=2", "config: … belongs to no run, so nothing says what to compare it with; …"),
    evaluate("a reward model", "checkpoint={reward} config=base.yaml evaluation.prompts=2", "checkpoint: …/reward is a GPTNeoXForSequenceClassification, which writes no text; …"),
    evaluate("a run's critic", f"checkpoint=run/{LATEST}/value evaluation.prompts=2 config=base.yaml", "checkpoint: …/value is a critic (value_head.safetensors lies in it), which writes no text; …"),
    evaluate("a model of another vocabulary", "checkpoint={other} config=base.yaml evaluation.prompts=2", "policy.path: …/policy has another vocabulary than …/other; the two must share a tokenizer"),
    evaluate("an adapter of another base", "checkpoint={adapter} config=base.yaml policy.path={other} evaluation.prompts=2", "checkpoint: the adapter in …/adapter was trained on …/policy, not on …/other; set policy…"),
    evaluate("a damaged adapter", "checkpoint=lora_run evaluation.prompts=2", "checkpoint: …/lora_run/final is no adapter of …/policy (Error while deserializing header: …); give one trained on this base", spoilt("lora_run", halve("final/adapter_model.safetensors"))),
    evaluate("a checkpoint for a pickle", "checkpoint=run/final evaluation.prompts=2", "checkpoint: …/run/final holds pickled weights only (pytorch_model.bin), which can run code when loaded; …",
             spoilt("run", lambda f: (f / "final/model.safetensors").rename(f / "final/pytorch_model.bin"))),
    evaluate("a judge without its model", "checkpoint=run evaluation.prompts=2 evaluation.judge.base_url=http://127.0.0.1:9/v1", "evaluation.judge.model: not set; name a model that the endpoint serves: evaluation.judge.model=NAME"),
    evaluate("an evaluator that raises", "checkpoint=run evaluation.prompts=2 evaluation.reward.kind=function evaluation.reward.function=mine.py:f",
             "evaluation.reward.function: mine.py:f raised KeyError: 'x'; fix it: …", both(spoilt("run"), file("mine.py", "def f(prompts, responses):\n    raise KeyError('x')\n"))),
]  # fmt: skip

REPORT_ROWS = [
    report("nothing named", "", "the following arguments are required: RUN; see apa-report --help"),
    report("no such folder", "runs/gone", "runs/gone: no such folder; name folders that apa-train wrote"),
    report("a file", "base.yaml", "base.yaml: a file, not a run's folder; name the folder that it lies in"),
    report("no run in it", "empty", "empty: no run in it; name folders that apa-train wrote, or a folder of such folders", folder("empty")),
    report("metrics with a broken line", "run", "run: …metrics.jsonl, line 1: not JSON (…); fix the line, or leave this run out",
           spoilt("run", lambda f: (f / "metrics.jsonl").write_text("{oops\n" + (f / "metrics.jsonl").read_text()))),
    report("metrics of other bytes", "run", "run: …metrics.jsonl, line 1: not JSON (…); …", spoilt("run", put("metrics.jsonl", b"\xff\xfe\x00\n{}\n"))),
    report("no metrics yet", "run", "run: no metrics yet; wait for the first iteration, or name other runs", spoilt("run", put("metrics.jsonl", ""))),
    report("a configuration that is not YAML", "run", "run/config.yaml: cannot be read: …; fix it, or leave this run out", spoilt("run", put("config.yaml", "seed: [1\n"))),
    report("a configuration that is a bomb", "run", "run/config.yaml: holds more than 10,000 values, …", spoilt("run", put("config.yaml", BOMB))),
    report("a configuration nested too deep", "run", "run/config.yaml: cannot be read: maximum recursion depth exceeded…; fix it, or leave this run out", spoilt("run", put("config.yaml", "a: " + "[" * 5000))),
    report("a configuration that is a list", "run", "run/config.yaml: not a mapping of keys to values; fix it, or leave this run out", spoilt("run", put("config.yaml", "- 1\n"))),
    report("metrics that are no numbers", "run", "run: metrics.jsonl has the iteration 'one', which is no whole number; fix the line, or leave this run out", spoilt("run", put("metrics.jsonl", '{"iteration": "one", "reward/mean": "high"}\n'))),
    *(report(f"a metric that is {name}", "run", f"run: metrics.jsonl has {value} as reward/mean, which is no number; …",
             spoilt("run", put("metrics.jsonl", f'{{"iteration": 1, "reward/mean": {written}}}\n')))
      for name, written, value in (("text", '"high"', "'high'"), ("a list", "[1, 2]", "[1, 2]"), ("a truth", "true", "True"),
                                   ("keys", '{"a": 1}', "{'a': 1}"))),
    report("metrics nested too deep", "run", "run: maximum recursion depth exceeded…; fix the line, or leave this run out",
           spoilt("run", put("metrics.jsonl", f'{{"iteration": 1, "reward/mean": {"[" * 100_000}\n'))),
    report("the report into the run", "run --output run", "--output: run is a run's folder; name another: --output DIR"),
    report("the report into a file", "run --output base.yaml", "--output: base.yaml is a file; name a folder: --output DIR"),
    report("an unknown option", "run --nope", "unrecognized arguments: --nope; see apa-report --help"),
]  # fmt: skip
