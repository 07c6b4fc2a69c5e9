"""Training on logged responses through the real command: what is learnt from, measured, kept and resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ROOT, Finished, apa_train, run_command
from hh_data import SAMPLE

from apa_cli.assets.resolve import resolve_path

LOGGED = ROOT / "tests" / "data" / "logged_sample.jsonl"
SMALL = (
    *("rollout.batch_size=8", "training.minibatch_size=4", "training.epochs_per_rollout=1", "evaluation.prompts=4"),
    *("evaluation.resamples=10", "value.warmup_iterations=1", "tracking.wandb.mode=disabled"),
    *("evaluation.reward.kind=none", "evaluation.reward.function=null"),
    f"data.eval_path={resolve_path('builtin:reviews/eval_prompts.jsonl')}",
)
OF_THE_POLICY = ("kl/", "policy/", "reward/")


def train(folder: Path, *overrides: str) -> Finished:
    cache = f"rollout.reference_cache={folder.parent / 'cache'}"
    done = apa_train(folder, "config=reviews_apa_offline", f"data.path={LOGGED}", cache, *SMALL, *overrides)
    assert done.code == 0, done.errors
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    words = ("data.score_column=score", "training.iterations=4", "tracking.samples=24", "checkpoint.every=2")
    return train(tmp_path_factory.mktemp("offline") / "run", *words)


def logged_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LOGGED.read_text(encoding="utf-8").splitlines()]


def test_nothing_is_said_of_the_policy_but_by_evaluations(run: Finished):
    assert run.errors == ""
    assert "training on 24 logged responses to 12 prompts" in run.output
    for line in run.metrics:
        assert [name for name in line if name.startswith(OF_THE_POLICY)] == []
        assert "time/generate" not in line
        assert line["logged/complete_fraction"] == 1.0
    assert run.metrics[-1]["eval/kl"] is not None
    log_ratios = [line["logged/log_ratio"] for line in run.metrics]
    assert abs(log_ratios[0]) < 1e-6  # the critic alone learns
    assert abs(log_ratios[-1]) > 1e-3


def test_an_epoch_is_every_logged_response_once_with_its_score(run: Finished):
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [s for s in samples if s["source"] == "training" and s["iteration"] <= 3]  # 3 times 8 of 24
    assert all(sample["kl"] is None for sample in trained)
    found = {(s["prompt"], s["response"].strip(), s["score"]) for s in trained}
    assert found == {(row["prompt"], row["response"], row["score"]) for row in logged_rows()}
    assert run.metrics[2]["logged/score_mean"] == pytest.approx(
        sum(s["score"] for s in trained if s["iteration"] == 3) / 8
    )


@pytest.mark.filterwarnings("ignore")
def test_the_kept_log_probs_are_the_models_own(run: Finished):
    """From transformers alone: a forward over prompt, response and end, row by row."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = (run.folder.parent / "cache").iterdir()
    kept = load_file(file)["logprobs"]
    place = resolve_path("builtin:reviews/policy")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    expected = []
    for row in logged_rows():
        before = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([[*before, *tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        expected.append(logprobs[len(before) - 1 :])
    torch.testing.assert_close(kept, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_a_second_run_reads_them_and_is_the_same(run: Finished, tmp_path: Path):
    words = ("data.score_column=score", "training.iterations=4", "tracking.samples=24", "checkpoint.every=2")
    cache = run.folder.parent / "cache"
    again = train(tmp_path / "run", *words, f"rollout.reference_cache={cache}")
    assert f"reference log-probs of 24 logged responses, from {cache}" in again.output
    names = [name for name in run.metrics[-1] if not name.startswith(("time/", "throughput/", "memory/"))]
    assert [[line.get(name) for name in names] for line in again.metrics] == [
        [line.get(name) for name in names] for line in run.metrics
    ]


def test_apa_eval_judges_it_like_any_other(run: Finished, tmp_path: Path):
    done = run_command("apa-eval", f"checkpoint={run.folder}", f"output_dir={tmp_path}/e", "device=cpu")
    assert done.code == 0, done.errors
    (result,) = (tmp_path / "e").rglob("eval.json")
    assert "kl_exact" in result.read_text(encoding="utf-8")


def test_pairs_of_dialogues_scored_by_a_function(tmp_path: Path):
    (tmp_path / "brief.py").write_text("def brief(prompts, responses, **c):\n    return [-len(r) for r in responses]\n")
    words = (f"data.path={SAMPLE}", "data.eval_path=null", "generation.max_new_tokens=16", "training.iterations=2")
    function = ("reward.kind=function", "reward.path=null", f"reward.function={tmp_path / 'brief.py'}:brief")
    done = train(tmp_path / "run", *words, *function, "objective=awr", "policy=lora", "value=adapter")
    assert "logged responses to 80 prompts" in done.output  # 84 dialogues, 4 of them held out
    assert done.metrics[-1]["logged/score_mean"] < 0


def test_logged_scores_alone_need_no_reward(tmp_path: Path):
    words = ("data.score_column=score", "reward.path=null", "evaluation.prompts=0", "training.iterations=2")
    done = train(tmp_path / "run", *words)
    assert "none: scores are logged" in done.output
    assert "generation" not in [line.split(" ")[0] for line in done.output.splitlines()]  # no cache is planned for
    note, warning = done.errors.splitlines()
    assert note.startswith("apa-train: note: evaluation.prompts is given twice")
    assert "KL is unknown" in warning


def test_where_the_cache_is_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from apa_cli.rollouts.reference_logprobs import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "apa-cli"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(None) == Path(os.path.expanduser("~/.cache/apa-cli"))
