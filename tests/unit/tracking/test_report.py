from dataclasses import replace

import pytest

from apa_cli.tracking.report import (
    Outcome,
    Summary,
    summary_lines,
    write_report,
)
from apa_cli.tracking.samples import SamplePair


@pytest.fixture
def summary(tmp_path):
    return Summary(
        before=Outcome(reward=0.5, kl=0.0, entropy=2.9, unique_fraction=1.0, response_length=30.0, eos_rate=0.8),
        after=Outcome(reward=1.75, kl=6.5, entropy=2.1, unique_fraction=0.95, response_length=28.0, eos_rate=1.0),
        samples=[
            SamplePair(prompt="The soup", before="was\ncold", after="was warm", score_before=-0.25, score_after=1.5),
            SamplePair(prompt="x" * 200 + " the end", before="", after="y" * 200, score_before=0.0, score_after=1.0),
            SamplePair(prompt="third", before="a", after="b", score_before=0.0, score_after=1.0),
        ],
        iterations=100,
        seconds=92.4,
        run_dir=tmp_path,
        final_dir=tmp_path / "final",
        plots=[tmp_path / "plots" / "overview.png", tmp_path / "plots" / "kl.png"],
    )


def test_a_run_that_stopped_early_says_so_first(summary, tmp_path, config):
    stopped = replace(summary, stopped="interrupted after iteration 7")
    assert summary_lines(stopped)[0] == "Stopped early: interrupted after iteration 7"
    assert "**Stopped early:** interrupted" in write_report(tmp_path, stopped, config).read_text()


def test_outcomes_from_metrics():
    evaluation = {"eval/reward": 1.0, "eval/kl": 2.0, "eval/unique_fraction": 0.5, "eval/distinct_2": 0.1}
    assert Outcome.from_evaluation(evaluation) == Outcome(reward=1.0, kl=2.0, unique_fraction=0.5)
    rollout = {"reward/mean": 1.0, "kl/to_init": 2.0, "policy/entropy": 3.0, "policy/eos_rate": 0.5}
    assert Outcome.from_rollout(rollout) == Outcome(reward=1.0, kl=2.0, entropy=3.0, eos_rate=0.5)


def test_a_response_cannot_break_out_of_its_block(summary, tmp_path, config):
    pair = SamplePair(prompt="p", before="```\n# heading", after="fine", score_before=0.0, score_after=0.0)
    text = write_report(tmp_path, replace(summary, samples=[pair]), config).read_text()
    assert "````text\n```\n# heading\n````" in text


def test_secrets_stay_out_of_the_report(summary, tmp_path, config, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted-0123456789")
    config.data.path = "https://hf_planted-0123456789@host/prompts.jsonl"
    assert "planted" not in write_report(tmp_path, summary, config).read_text()
