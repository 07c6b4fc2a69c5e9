"""Several rewards and a length penalty through the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import apa_train, run_command
from tiny_models import make_tokenizer, save_policy

SMALL = (
    *("rollout.batch_size=8", "training.minibatch_size=8", "training.iterations=2", "evaluation.prompts=4"),
    *("evaluation.resamples=10", "tracking.wandb.mode=disabled", "tracking.samples=8", "checkpoint.every=1"),
)
FUNCTIONS = """
def letters(prompts, responses):
    return [float(len(response)) for response in responses]
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS, encoding="utf-8")
    return file


def test_by_name_everywhere(tmp_path: Path, functions: Path):
    run = apa_train(
        tmp_path / "run",
        *("config=reviews_apa_rewards", "reward.components.sentiment.weight=2", "reward.length_target=10"),
        *("reward.components.letters.kind=function", f"reward.components.letters.function={functions}:letters"),
        *("reward.components.letters.weight=-0.01", *SMALL),
    )
    assert run.code == 0, run.errors
    weights = {"sentiment": 2.0, "form": 0.5, "letters": -0.01}
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        parts = sample["parts"]
        assert parts["letters"] == len(sample["response"])
        assert sample["score"] == pytest.approx(sum(weights[name] * parts[name] for name in weights), abs=1e-6)
    for line in run.metrics:
        mine = [s for s in samples if s["iteration"] == line["iteration"] and s["source"] == "training"]
        assert len(mine) == 8
        for name, weight in weights.items():
            values = [s["parts"][name] for s in mine]
            mean = sum(values) / 8
            assert line[f"reward/{name}"] == pytest.approx(mean, abs=1e-5), weight
            deviation = (sum((value - mean) ** 2 for value in values) / 8) ** 0.5
            assert line[f"reward/{name}_std"] == pytest.approx(deviation, abs=1e-4)
        total = sum(weight * line[f"reward/{name}"] for name, weight in weights.items())
        assert line["reward/mean"] == pytest.approx(total, abs=1e-5)
        assert 0 < line["reward/length_penalty"] < 0.05 * 22
    assert {f"eval/reward/{name}" for name in weights} <= set(run.metrics[-1])
    report = (run.folder / "report.md").read_text(encoding="utf-8")
    assert "| reward, letters |" in report
    assert "+ -0.01 × letters" in report
    assert "less 0.05 a token beyond 10" in report
    assert json.loads((run.folder / "summary.json").read_text())["after"]["parts"].keys() == weights.keys()

    done = run_command("apa-eval", f"checkpoint={run.folder}")
    assert done.code == 0, done.errors
    assert "training reward, letters" in done.output

    more = apa_train(run.folder, f"resume={run.folder}", "training.iterations=3", "reward.components.form.weight=1")
    assert more.code == 2
    assert "the configuration is not the run's: reward.components.form.weight 0.5 → 1" in more.errors
    more = apa_train(run.folder, f"resume={run.folder}", "training.iterations=3", "~reward.components.form")
    assert more.code == 2
    assert "reward.components.form gone" in more.errors
    timeout = "reward.components.letters.timeout_seconds=5"
    more = apa_train(run.folder, f"resume={run.folder}", "training.iterations=3", timeout)
    assert more.code == 0, more.errors
    assert len(more.metrics) == 3


def test_final_answers_of_logged_responses(tmp_path: Path):
    """Half of the responses are right, a quarter cannot be read; the same column judges what is sampled."""
    pytest.importorskip("math_verify", reason="the extra math is not installed")
    save_policy(tmp_path / "policy", make_tokenizer())
    responses = ["so #### 1,000", "it is 1000.0", "it is 7", "no idea"]
    rows = [
        {"prompt": f"row {row}", "response": responses[row % 4], "answer": "500 * 2 = 1000\n#### 1000"}
        for row in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"prompt": "six", "answer": 6}) + "\n", encoding="utf-8")
    run = apa_train(
        tmp_path / "run",
        *("config=own", f"policy.path={tmp_path / 'policy'}", "reward=math", "reward.answer_column=answer"),
        *("rollout=offline", f"data.path={tmp_path / 'rows.jsonl'}", f"data.eval_path={tmp_path / 'held_out.jsonl'}"),
        *(*SMALL, "training.iterations=1", "rollout.batch_size=12", "training.minibatch_size=12"),
        *(f"rollout.reference_cache={tmp_path / 'cache'}", "evaluation.prompts=1"),
        *("evaluation.reward.kind=math", "evaluation.reward.answer_column=answer", "value.warmup_iterations=0"),
    )
    assert run.code == 0, run.errors
    assert run.metrics[-1]["logged/score_mean"] == 0.5
    assert run.metrics[-1]["logged/unreadable"] == 0.25
    assert {"eval/evaluator", "eval/evaluator/unreadable"} <= run.metrics[-1].keys()
    log = (run.folder / "run.log").read_text(encoding="utf-8")
    assert "reads 1000 as the right answer (column answer), and of its response 1000" in log
    assert "no final answer can be read in 3 of 12 responses" in log
