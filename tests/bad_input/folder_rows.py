"""Output folders that hold something of the user's, or lie where nothing of theirs may be touched."""

from __future__ import annotations

from pathlib import Path

from bad_input.damage import both, file, folder, put, spoilt
from bad_input.harness import Make, Parts, Row, copy_of

ANOTHER = "choose another folder: output_dir=DIR"
REWARD = "def reward(prompts, responses):\n    return [0.0] * len(responses)\n"


def train(name: str, words: str, line: str, make: Make) -> Row:
    return Row(name=name, command=f"apa-train config=base.yaml {words}", make=make, line=f"output_dir: {line}")


def in_the_way(name: str, content: str = "mine") -> Row:
    line = f"out/{name} is there already and was not written by this command; move it away, or {ANOTHER}"
    return train(f"{name} of the user's", "output_dir=out", line, file(f"out/{name}", content))


def policy_in(place: Path, parts: Parts) -> None:
    copy_of(parts.policy, place / "pre/final")


def link(name: str, target: str) -> Make:
    def make(place: Path, parts: Parts) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(place / target)

    return make


def lies_in(key: str, place: str) -> str:
    return f"… lies in an input, {key}=…{place}; {ANOTHER}"


def holds(key: str, place: str) -> str:
    return f"… holds an input, {key}=…{place}; {ANOTHER}"


RUN = spoilt("run")
ROWS = [
    *(in_the_way(name) for name in ("config.yaml", "run.log", "metrics.jsonl", "samples.jsonl", "report.md", "summary.json", "versions.json", "final/model.safetensors", "plots/mine.png", "checkpoints/iter_000001/mine", "wandb/mine", ".apa-cli")
      if "/" not in name),
    train("a folder called final", "output_dir=out", f"out/final is there already and was not written by this command; move it away, or {ANOTHER}", file("out/final/model.safetensors", "x")),
    train("a folder called plots", "output_dir=out", f"out/plots is there already and was not written by this command; move it away, or {ANOTHER}", file("out/plots/mine.png", "x")),
    train("a folder of checkpoints", "output_dir=out resume=auto", f"out/checkpoints is there already and was not written by this command; move it away, or {ANOTHER}", file("out/checkpoints/iter_000001/x", "x")),
    train("a dangling link", "output_dir=out", f"out/run.log is there already and was not written by this command; move it away, or {ANOTHER}", link("out/run.log", "nowhere")),
    train("the user's lock", "output_dir=out", "…/.lock is not the lock of a run; move it away, or choose another folder", file("out/.lock", "mine")),
    train("a lock that is a link", "output_dir=out", "…/.lock is not the lock of a run; move it away, or choose another folder", both(file("mine", ""), link("out/.lock", "mine"))),
    train("a lock that is a folder", "output_dir=out", "…/.lock is not the lock of a run; move it away, or choose another folder", folder("out/.lock")),
    train("the policy in the folder", "policy.path=pre/final output_dir=pre", holds("policy.path", "pre/final"), policy_in),
    train("the policy's own folder", "policy.path=pre/final output_dir=pre/final", lies_in("policy.path", "pre/final"), policy_in),
    train("inside the policy", "policy.path=pre/final output_dir=pre/final/run/deep", lies_in("policy.path", "pre/final"), policy_in),
    train("the policy by a link and ..", "policy.path=pre/final output_dir=other/../way", holds("policy.path", "pre/final"), both(policy_in, link("way", "pre"))),
    train("the reference inside", "reference.path=pre/final output_dir=pre", holds("reference.path", "pre/final"), policy_in),
    train("the critic inside", "value.path=pre/final output_dir=pre", holds("value.path", "pre/final"), policy_in),
    train("the data inside", "data.path=dd/samples.jsonl output_dir=dd", holds("data.path", "dd/samples.jsonl"), file("dd/samples.jsonl", '{"prompt": "a"}\n')),
    train("some of the data inside", "'data.path=\"dd/*/*.jsonl\"' output_dir=dd/b", holds("data.path", "dd/b/2.jsonl"), both(file("dd/a/1.jsonl", '{"prompt": "a"}\n'), file("dd/b/2.jsonl", '{"prompt": "b"}\n'))),
    train("inside the folder of the data", "data.path=dd output_dir=dd/out", lies_in("data.path", "dd"), file("dd/1.jsonl", '{"prompt": "a"}\n')),
    train("the held-out data inside", "data.eval_path=dd/x.jsonl output_dir=dd", holds("data.eval_path", "dd/x.jsonl"), file("dd/x.jsonl", '{"prompt": "a"}\n')),
    train("the working folder with the data", "output_dir=.", holds("data.path", "prompts.jsonl"), folder("unused")),
    train("the reward function inside", "reward.kind=function reward.path=null reward.function=mine/score.py:reward output_dir=mine", holds("reward.function", "mine/score.py"), file("mine/score.py", REWARD)),
    train("one of several rewards inside", "reward.kind=model reward.path=null '+reward.components={a: {kind: function, function: \"mine/score.py:reward\", path: null}}' output_dir=mine",
          holds("reward.components.a.function", "mine/score.py"), file("mine/score.py", REWARD)),
    train("inside a run", "output_dir=run/again", f"run/again lies in the run run; {ANOTHER}", RUN),
    train("inside a checkpoint", "output_dir=run/checkpoints/iter_000001/again", f"… lies in the run run; {ANOTHER}", RUN),
    train("the root of the disk", "output_dir=/", f"/ cannot be the folder of one run alone; {ANOTHER}", folder("unused")),
    train("a sweep inside a run", "-m seed=1,2 output_dir=run", f"run lies in the run run; {ANOTHER}", RUN),
    train("a sweep over the user's table", "-m seed=1,2 output_dir=out", f"out/sweep.csv is there already and was not written by this command; move it away, or {ANOTHER}", file("out/sweep.csv", "a,b\n")),
    train("a report written while the run was stopped", "output_dir=run resume=auto training.iterations=3", f"run/report.md is there already and was not written by this command; move it away, or {ANOTHER}",
          spoilt("run", put(".apa-cli", '{"format": 1, "run": ["config.yaml", "overrides.yaml", "versions.json", "run.log", "metrics.jsonl", "samples.jsonl", "checkpoints", "final", "plots", "summary.json"]}'))),
    Row(name="an evaluation into its run", command="apa-eval checkpoint=run evaluation.prompts=2 output_dir=run", make=RUN, line=f"output_dir: run lies in the run run; {ANOTHER}"),
    Row(name="an evaluation into a checkpoint", command="apa-eval checkpoint=run evaluation.prompts=2 output_dir=run/checkpoints/iter_000002", make=RUN, line=f"output_dir: … lies in the run run; {ANOTHER}"),
    Row(name="an evaluation around its run", command="apa-eval checkpoint=run evaluation.prompts=2 output_dir=.", make=RUN, line=f"output_dir: … holds an input, …; {ANOTHER}"),
    Row(name="an evaluation over the user's samples", command="apa-eval checkpoint=run evaluation.prompts=2 output_dir=out", make=both(RUN, file("out/samples.jsonl", "mine")),
        line=f"output_dir: out/samples.jsonl is there already and was not written by this command; move it away, or {ANOTHER}"),
    Row(name="a report over the user's", command="apa-report run --output out", make=both(RUN, file("out/report.md", "mine")),
        line="--output: out/report.md is there already and was not written by this command; move it away, or name another: --output DIR"),
    Row(name="a report over the user's picture", command="apa-report run --output out", make=both(RUN, file("out/plots/frontier.png", "mine")),
        line="--output: out/plots/frontier.png is there already and was not written by this command; move it away, or name another: --output DIR"),
]  # fmt: skip
