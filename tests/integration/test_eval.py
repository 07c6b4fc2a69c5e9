"""apa-eval as a user runs it, on two tiny runs of the built-in task: right figures, and nothing touched on error."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Finished, apa_train, run_command
from reward_server import Answer, serving
from wandb_file import read_records

from apa_cli.commands.eval import main

SMALL = ("rollout.batch_size=16", "training.minibatch_size=8", "training.iterations=4", "checkpoint.every=2")
FEW = "evaluation.prompts=6"

REWARDS = """
def not_a_number(prompts, responses):
    return [float("nan")] * len(responses)

def too_few(prompts, responses):
    return [1.0]
"""


def apa_eval(*arguments: str, cwd: Path | None = None, code: int = 0) -> Finished:
    """`apa-eval ARGUMENTS` in a process of its own, which is to end with `code`."""
    done = run_command("apa-eval", *arguments, cwd=cwd, NO_PROXY="127.0.0.1")
    assert done.code == code, done.errors
    return done


def evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "eval.json").read_text(encoding="utf-8"))


def last_judgement(run: Path) -> dict[str, float]:
    """The last figures on held-out prompts that training wrote down."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "eval/reward" in line][-1]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (facts.st_size, facts.st_mtime_ns) for path, facts in found.items()}


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "run"
    done = apa_train(folder, *SMALL, "evaluation.prompts=64", "tracking.wandb.mode=offline")
    assert done.code == 0, done.errors
    return folder


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an adapter, judged greedily, on rows set aside from the training file."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    lora = ("policy.adapter.r=4", "optimizer.learning_rate=1e-2", "evaluation.prompts=12", "seed=3")
    lora += ("evaluation.decoding=greedy", "data.eval_path=null")
    done = apa_train(folder, *SMALL, *lora, "tracking.wandb.mode=disabled")
    assert done.code == 0, done.errors
    return folder


@pytest.fixture(scope="module")
def of_full_run(full_run: Path) -> tuple[Path, Finished]:
    """The evaluation's folder, and what the command said."""
    finished = apa_eval(f"checkpoint={full_run}")
    return full_run / "evaluation" / "final", finished


@pytest.fixture(scope="module")
def of_all(full_run: Path) -> tuple[Path, Finished]:
    """All checkpoints of the run and its final policy, on few prompts."""
    finished = apa_eval(f"checkpoint=[{full_run}/checkpoints/*,{full_run}]", FEW, "tracking.wandb.mode=disabled")
    return full_run / "evaluation" / "checkpoints", finished


def agree(figures: dict[str, dict[str, float]], logged: dict[str, float]) -> None:
    """All that training logs, win rates among it, to the rounding of a forward (1e-6 nats a token)."""
    assert {"reward", "evaluator", "kl", "kl_exact", "win_rate", "evaluator_tie_rate"} <= set(figures)
    found = {f"eval/{name}": figure["value"] for name, figure in figures.items()}
    for name in ("reward", "evaluator", "kl"):
        found |= {f"eval/{name}_{end}": figures[name][end] for end in ("low", "high")}
    expected = {name: value for name, value in logged.items() if name.startswith("eval/")}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_training_and_evaluation_agree(full_run: Path, of_full_run: tuple[Path, Finished]):
    initial, final = evaluation(of_full_run[0])["policies"]
    assert (final["name"], final["iteration"]) == ("final", 4)
    agree(final["figures"], last_judgement(full_run))
    assert final["figures"]["kl_exact"]["value"] > 0.01
    first = json.loads((full_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    agree(initial["figures"], first)


def test_training_and_evaluation_agree_with_an_adapter(lora_run: Path):
    apa_eval(f"checkpoint={lora_run}")
    written = evaluation(lora_run / "evaluation" / "final-greedy")
    initial, final = written["policies"]
    agree(final["figures"], last_judgement(lora_run))
    assert len(written["rows"]) == 12 and written["rows"][0].startswith("builtin:reviews/prompts.jsonl, line ")
    assert written["streams"] == {"responses": 0, "opponents": 1}
    assert final["figures"]["kl_exact"]["value"] > 0.01
    assert initial["figures"]["kl_exact"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_with_another_reference_the_initial_policy_is_still_the_start(full_run: Path, tmp_path: Path):
    """Trained on from a final model, KL measured from the policy before that: samples and name are the start's."""
    start, run = full_run / "final", tmp_path / "run"
    paths = (f"policy.path={start}", "reference.path=builtin:reviews/policy", "checkpoint.every=0")
    done = apa_train(run, *SMALL[:2], *paths, FEW, "training.iterations=1", "tracking.wandb.mode=disabled")
    assert done.code == 0, done.errors
    assert apa_eval(f"checkpoint={run}").errors == ""
    written = evaluation(run / "evaluation" / "final")
    initial, final = written["policies"]
    assert (initial["path"], written["reference"]) == (str(start), "builtin:reviews/policy")
    agree(initial["figures"], json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]))
    agree(final["figures"], last_judgement(run))
    assert initial["figures"]["kl_exact"]["value"] > 0.01
    assert "KL is measured from the reference, builtin:reviews/policy." in (
        run / "evaluation" / "final" / "eval.md"
    ).read_text(encoding="utf-8")


def test_the_initial_policy_against_itself(of_full_run: tuple[Path, Finished]):
    figures = evaluation(of_full_run[0])["policies"][0]["figures"]
    assert figures["kl_exact"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert figures["kl"]["value"] == pytest.approx(0.0, abs=1e-4)
    for prefix in ("", "evaluator_"):
        win, tie, lose = (figures[f"{prefix}{name}_rate"] for name in ("win", "tie", "lose"))
        assert win["low"] <= 0.5 <= win["high"]
        assert win["value"] + tie["value"] + lose["value"] == pytest.approx(1.0)


def test_what_is_printed_and_written(full_run: Path, of_full_run: tuple[Path, Finished]):
    folder, finished = of_full_run
    assert finished.errors == ""
    assert "64 prompts from builtin:reviews/eval_prompts.jsonl" in finished.output
    reward = evaluation(folder)["policies"][1]["figures"]["reward"]
    shown = f"{reward['value']:.3f} [{reward['low']:.3f}, {reward['high']:.3f}]"
    assert re.search(rf"^training reward .*{re.escape(shown)}$", finished.output, re.MULTILINE)
    assert shown in (folder / "eval.md").read_text(encoding="utf-8")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(samples) == 64
    assert sum(row["score_after"] for row in samples) / 64 == pytest.approx(reward["value"])
    wins = sum(row["score_after"] > row["score_before"] + 1e-6 for row in samples) / 64
    assert evaluation(folder)["policies"][1]["figures"]["win_rate"]["value"] == pytest.approx(wins)
    assert "<h3>Typical</h3>" in (folder / "samples.html").read_text(encoding="utf-8")


def test_wandb_has_the_figures_under_the_runs_own_id(full_run: Path, of_full_run: tuple[Path, Finished]):
    folder = of_full_run[0]
    recorded = read_records(folder)
    ids = {record.run.run_id for record in recorded if record.WhichOneof("record_type") == "run"}
    assert ids == {(full_run / "wandb" / "run-id").read_text(encoding="utf-8")}
    summary = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in recorded
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    for policy in evaluation(folder)["policies"]:
        for name, figure in policy["figures"].items():
            assert summary[f"apa-eval/{policy['name']}/{name}"] == pytest.approx(figure["value"])


def test_the_seed_decides(full_run: Path, of_all: tuple[Path, Finished], tmp_path: Path):
    for name in ("first", "second"):
        quiet = ("tracking.wandb.mode=disabled", f"output_dir={tmp_path / name}")
        apa_eval(f"checkpoint={full_run}", FEW, "seed=5", *quiet)
    first, second = (evaluation(tmp_path / name) for name in ("first", "second"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    for name in ("eval.md", "samples.jsonl", "samples.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    other = evaluation(of_all[0])["policies"]  # the same prompts with seed 0
    for ours, theirs in ((first["policies"][0], other[0]), (first["policies"][1], other[-1])):
        assert ours["name"] == theirs["name"]
        assert ours["figures"]["reward"]["value"] != theirs["figures"]["reward"]["value"]


def test_all_checkpoints_in_one_table(of_all: tuple[Path, Finished]):
    folder, finished = of_all
    found = {policy["name"]: policy["figures"] for policy in evaluation(folder)["policies"]}
    assert list(found) == ["initial", "iter_000002", "iter_000004", "final"]
    assert found["iter_000004"] == found["final"]  # the same weights
    assert 0 < found["iter_000002"]["kl_exact"]["value"] < found["iter_000004"]["kl_exact"]["value"]
    header = (folder / "eval.md").read_text(encoding="utf-8").splitlines()[4]
    assert header == "|  | initial | iter_000002 | iter_000004 | final |"
    assert (folder / "over_iterations.png").read_bytes().startswith(b"\x89PNG")
    assert "over_iterations.png" in finished.output


def test_any_model_folder_with_a_configuration(full_run: Path, of_full_run: tuple[Path, Finished], tmp_path: Path):
    """A run's final/ taken elsewhere: the same figures, where the file says the same as the run."""
    shutil.copytree(full_run / "final", tmp_path / "taken")
    (tmp_path / "mine.yaml").write_text(
        "policy.path: builtin:reviews/policy\n"
        "reward.path: builtin:reviews/reward\n"
        "data: {path: builtin:reviews/prompts.jsonl, eval_path: builtin:reviews/eval_prompts.jsonl}\n"
        "generation.max_new_tokens: 32\n"
        "rollout.batch_size: 16\n"
        "evaluation: {prompts: 64, reward: {kind: function, function: apa_cli.assets.grammar:sentiment}}\n",
        encoding="utf-8",
    )
    apa_eval("checkpoint=taken", "config=mine.yaml", cwd=tmp_path)
    (folder,) = (tmp_path / "evaluations").iterdir()
    found, expected = evaluation(folder)["policies"], evaluation(of_full_run[0])["policies"]
    assert [policy["figures"] for policy in found] == [policy["figures"] for policy in expected]
    assert (found[1]["name"], found[1]["iteration"]) == ("taken", None)


def longer(request: dict[str, Any]) -> Answer:
    """/v1/chat/completions of a judge that likes the longer response."""
    a, b = re.findall(r"<<<RESPONSE [AB] \w+>>>\n(.*?)\n<<<END", request["messages"][1]["content"], re.DOTALL)
    answer = "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    return Answer(json.dumps({"choices": [choice], "usage": usage}).encode())


def test_an_endpoint_judges_too(full_run: Path, tmp_path: Path):
    quiet = ("tracking.wandb.mode=disabled", f"output_dir={tmp_path / 'out'}", "evaluation.prompts=10")
    with serving(longer) as served:
        judge = (f"evaluation.judge.base_url={served.url.replace('/score', '/v1')}", "evaluation.judge.model=m")
        finished = apa_eval(f"checkpoint={full_run}/checkpoints/iter_000002", *judge, *quiet)
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text("utf-8").splitlines()]
    lengths = [(len(row["after"]), len(row["before"])) for row in rows]
    wins, losses = sum(a > b for a, b in lengths), sum(a < b for a, b in lengths)
    assert 0 < wins < 10
    policy = evaluation(tmp_path / "out")["policies"][1]
    rates = [policy["figures"][f"judge_{name}_rate"]["value"] for name in ("win", "tie", "lose")]
    assert rates == pytest.approx([wins / 10, (10 - wins - losses) / 10, losses / 10])
    assert (policy["judge"]["judged"], policy["judge"]["wins"], policy["judge"]["requests"]) == (10, wins, 20)
    assert "Endpoint judge on iter_000002: m, 10 of 10 pairs judged" in finished.output


@pytest.mark.parametrize(
    ("name", "said"), [("not_a_number", "returned nan for row 0"), ("too_few", "returned 1 scores for 6 responses")]
)
def test_a_broken_evaluator_touches_nothing(
    full_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    said: str,
):
    """In this process, which has torch at hand."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    before = contents(full_run)
    function = f"evaluation.reward.function={tmp_path}/rewards.py:{name}"
    assert main([f"checkpoint={full_run}", function, FEW]) == 2
    out, errors = capfd.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert errors.startswith("apa-eval: error: evaluation.reward.function: ")
    assert said in errors
    assert contents(full_run) == before
