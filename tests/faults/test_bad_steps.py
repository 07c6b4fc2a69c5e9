"""Numbers that are not finite, too little memory, and limits that end a run, through the real command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Finished, apa_train
from runs import latest

QUICK = (
    *("rollout.batch_size=8", "training.minibatch_size=4", "training.iterations=3", "generation.max_new_tokens=8"),
    *("evaluation.prompts=0", "tracking.wandb.mode=disabled", "tracking.console=quiet"),
)
HEAD = """
import math

calls = 0


def reward(prompts, responses):
    global calls
    calls += 1
    scores = [float(len(response)) for response in responses]
"""


def run_with(folder: Path, body: str, *overrides: str) -> Finished:
    """Three iterations with a reward that `body` may spoil: calls count from 1, scores are there to be changed."""
    folder.mkdir(exist_ok=True)
    file = folder / "mine.py"
    file.write_text(f"{HEAD}    {body}\n    return scores\n", encoding="utf-8")
    function = ("reward.kind=function", f"reward.function={file}:reward")
    return apa_train(folder / "run", *QUICK, *function, *overrides)


def log_of(run: Finished) -> str:
    return (run.folder / "run.log").read_text(encoding="utf-8")


def saved_state(run: Finished) -> dict[str, Any]:
    return json.loads((latest(run.folder) / "trainer_state" / "state.json").read_text("utf-8"))


def summary_of(run: Finished) -> dict[str, Any]:
    return json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))


def test_a_response_without_a_score_is_left_out_by_itself(tmp_path: Path):
    run = run_with(tmp_path, "scores = [None, *scores[1:5], math.nan, math.inf, 8.0] if calls == 2 else scores")
    assert run.code == 0, run.errors
    (warning,) = run.errors.splitlines()
    assert warning == (
        f"warning: iteration 2: reward.function: {tmp_path}/mine.py:reward returned nan for row 0; "
        "return finite numbers; 3 of 8 responses have no score and are left out"
    )
    assert [line["optim/skipped_responses"] for line in run.metrics] == [0, 3, 0]
    assert [line["optim/skipped_minibatches"] for line in run.metrics] == [0, 0, 0]
    for line in run.metrics:
        assert all(value is not None for value in line.values()), line
    assert saved_state(run)["moments"]["count"] == 3 * 8 - 3
    assert saved_state(run)["health"]["unscored"] == 0


def test_a_reward_that_never_scores_saves_and_stops_and_a_mended_one_goes_on(tmp_path: Path):
    bad = run_with(tmp_path, "scores = [None] * 8 if calls > 1 else scores", "training.iterations=8")
    assert bad.code == 2
    note, *warnings, line = bad.errors.splitlines()
    assert note == "apa-train: note: training.iterations is given twice (3, 8): 8 holds"
    assert line == (
        f"apa-train: error: reward.function: {tmp_path}/mine.py:reward returned nan for row 0, "
        "and no response has had a score for 5 iterations in a row; return finite numbers"
    )
    assert [warning.rpartition("; ")[2] for warning in warnings] == [
        "none of the 8 responses has a score, so there is no step"
    ] * 4
    assert "Traceback" not in bad.errors + bad.output + log_of(bad)
    assert line.removeprefix("apa-train: error: ") in log_of(bad)
    assert [row["optim/skipped_responses"] for row in bad.metrics] == [0, 8, 8, 8, 8]
    assert bad.metrics[1]["reward/mean"] is None
    assert bad.metrics[1]["kl/to_init"] is not None
    assert saved_state(bad)["iteration"] == 5
    assert saved_state(bad)["health"]["unscored"] == 0  # as many tries again
    assert not (bad.folder / "summary.json").exists()

    mended = run_with(tmp_path, "pass", "training.iterations=8", "resume=auto", "resume_allow_changes=true")
    assert mended.code == 0, mended.errors
    assert "changed under the same path since the run began: reward.function=" in log_of(mended)
    assert [row["iteration"] for row in mended.metrics] == list(range(1, 9))
    assert [row["optim/skipped_responses"] for row in mended.metrics[5:]] == [0, 0, 0]
    assert saved_state(mended)["moments"]["count"] == 4 * 8


POISONING = """
    if calls == 1:  # of the evaluation before training
        import gc
        from apa_cli.models.policy import Policy
        for model in [o.model for o in gc.get_objects() if isinstance(o, Policy)]:
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight") and "layers" not in name and parameter.requires_grad:
                    parameter.data[3] = math.nan
"""


def test_a_poisoned_parameter_is_named(tmp_path: Path):
    """It cannot be trained away, and a policy that has one cannot even be sampled from."""
    run = run_with(tmp_path, POISONING, "training.max_skipped=3", "evaluation.prompts=4")
    assert run.code == 1
    line = run.errors.splitlines()[-1]
    assert line.startswith("apa-train: error: training diverged: 3 minibatches in a row were skipped ")
    assert "not finite: weights of policy model.norm.weight; at iteration 1, λ 0.3, scores from " in line
    assert "Traceback" not in run.errors + run.output
    assert (run.folder / "checkpoints" / "latest").exists()


@pytest.mark.parametrize("missing", [1, 4])
def test_an_evaluation_leaves_out_what_has_no_score_and_the_run_goes_on(tmp_path: Path, missing: int):
    file = tmp_path / "judge.py"
    file.write_text(f"def score(prompts, responses):\n    return [float('inf')] * {missing} + [1.0] * {4 - missing}\n")
    judge = ("evaluation.reward.kind=function", f"evaluation.reward.function={file}:score", "evaluation.prompts=4")
    run = run_with(tmp_path, "pass", *judge, "checkpoint.best_metric=eval/evaluator", "training.iterations=1")
    assert run.code == 0, run.errors
    left_out = "and are left out" if missing == 1 else "so it is missing"
    assert [line for line in run.errors.splitlines() if "eval/evaluator" in line and "no score" in line] == [
        f"warning: evaluation after iteration {i}: eval/evaluator: {missing} of 4 responses have no score, {left_out}"
        for i in (0, 1)
    ]
    last = run.metrics[-1]
    assert last["eval/evaluator"] == (1.0 if missing == 1 else None)
    assert last["eval/evaluator_tie_rate"] == (1.0 if missing == 1 else None)
    assert last["eval/evaluator_unscored"] == missing / 4
    assert last["eval/reward"] is not None
    assert summary_of(run)["after"]["evaluator"] == last["eval/evaluator"]
    assert (run.folder / "checkpoints" / "best").exists() == (missing == 1)


LITTLE_MEMORY = """
    import torch
    from apa_cli.algorithms import Objective
    real = Objective.value_loss
    def value_loss(self, values, part, returns):
        if calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, values, part, returns)
    if calls == 1:
        Objective.value_loss = value_loss
"""


def test_one_response_that_does_not_fit_ends_the_run_saved(tmp_path: Path):
    run = run_with(tmp_path, LITTLE_MEMORY.strip())
    assert run.code == 2
    line = run.errors.splitlines()[-1]
    assert line.startswith("apa-train: error: training.microbatch_tokens: one response alone does not fit in the ")
    assert "data.max_prompt_tokens" in line
    assert "Traceback" not in run.errors + run.output + log_of(run)
    assert len(run.metrics) == 1
    assert saved_state(run)["iteration"] == 1


def test_a_limit_ends_the_run_cleanly(tmp_path: Path):
    said = "training.stop_if.reward_below: reward/mean below 999 for 2 iterations in a row, last "
    overrides = (
        *("training.stop_if.reward_below=999", "training.stop_if.patience=2", "training.iterations=9"),
        *("optimizer.learning_rate=3e-3", "evaluation.prompts=4", "evaluation.every=0", "checkpoint.every=0"),
    )
    run = run_with(tmp_path, "pass", *overrides)
    assert run.code == 0, run.errors
    done = run.metrics[-1]["iteration"]
    assert done == 2
    assert said in run.errors
    summary = summary_of(run)
    assert summary["stopped"].startswith(said)
    assert summary["iterations"] == done
    assert run.metrics[-1]["eval/reward"] is not None  # evaluated there, though only before and after is asked for
    assert summary["after"]["reward"] == run.metrics[-1]["eval/reward"]
    assert f"**Stopped early:** {said}" in (run.folder / "report.md").read_text(encoding="utf-8")
    assert f"Stopped early: {said}" in log_of(run)
    assert saved_state(run)["iteration"] == done
    assert (run.folder / "final" / "model.safetensors").exists()
    assert f"- iterations: {done} × 8 responses" in (run.folder / "final" / "README.md").read_text(encoding="utf-8")
    (run.folder / "summary.json").unlink()  # killed between the save and the summary
    again = run_with(tmp_path, "pass", *overrides, "resume=auto")
    assert again.code == 0, again.errors
    assert len(again.metrics) == done
    assert summary_of(again)["stopped"] == summary["stopped"]
    assert summary_of(again)["after"] == summary["after"]
