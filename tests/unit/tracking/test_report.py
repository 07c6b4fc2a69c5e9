import re
from dataclasses import replace

import pytest

from apa_cli.tracking.pages import format_seconds
from apa_cli.tracking.report import (
    Outcome,
    Summary,
    measured_rows,
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


def test_the_last_lines_say_what_happened_and_where_it_is(summary, tmp_path):
    lines = summary_lines(summary)
    text = "\n".join(lines)
    assert lines[0] == "100 iterations in 92.4 s, on held-out prompts:"
    assert re.search(r"reward +0\.500 → 1\.750", text)
    assert re.search(r"KL from the start +0\.00 → +6\.50 +nats per response", text)
    assert re.search(r"entropy +2\.900 → 2\.100 +nats per token", text)
    assert "before (-0.25): was cold" in text
    assert "after  (+1.50): was warm" in text
    assert "third" not in text  # two samples are enough
    assert "the end" in text  # of a long prompt, its end is shown
    assert "before (+0.00): (empty)" in text
    for path in (tmp_path, tmp_path / "final", tmp_path / "plots", tmp_path / "report.md"):
        assert str(path) in text
    assert "overview.png, kl.png" in text
    assert len(lines) <= 20


def test_where_nothing_is_measured_the_lines_say_so(summary, tmp_path, config):
    bare = replace(summary, before=Outcome(), after=Outcome(), samples=[])
    assert summary_lines(bare)[:2] == [
        "100 iterations in 92.4 s; how the policy does was not measured",
        f"Folder    {tmp_path}",
    ]
    report = write_report(tmp_path, bare, config).read_text()
    assert "100 iterations in 92.4 s; how the policy does was not measured.\n" in report
    assert "| before | after |" not in report


def test_what_was_not_measured_is_left_out(summary):
    titles = [title for title, *_ in measured_rows(summary.before, summary.after)]
    assert "separate evaluator" not in titles
    rows = measured_rows(Outcome(), Outcome(evaluator=0.5, kl=float("nan")))
    assert rows == [("separate evaluator", "–", "0.500", ""), ("KL from the start", "–", "–", "nats per response")]


def test_a_run_that_stopped_early_says_so_first(summary, tmp_path, config):
    stopped = replace(summary, stopped="interrupted after iteration 7")
    assert summary_lines(stopped)[0] == "Stopped early: interrupted after iteration 7"
    assert "**Stopped early:** interrupted" in write_report(tmp_path, stopped, config).read_text()


def test_outcomes_from_metrics():
    evaluation = {"eval/reward": 1.0, "eval/kl": 2.0, "eval/unique_fraction": 0.5, "eval/distinct_2": 0.1}
    assert Outcome.from_evaluation(evaluation) == Outcome(reward=1.0, kl=2.0, unique_fraction=0.5)
    rollout = {"reward/mean": 1.0, "kl/to_init": 2.0, "policy/entropy": 3.0, "policy/eos_rate": 0.5}
    assert Outcome.from_rollout(rollout) == Outcome(reward=1.0, kl=2.0, entropy=3.0, eos_rate=0.5)


def test_the_report_links_what_lies_beside_it(summary, tmp_path, config):
    text = write_report(tmp_path, summary, config).read_text()
    assert "| reward | 0.500 | 1.750 |" in text
    assert "![overview](plots/overview.png)" in text
    assert "[final](final)" in text
    assert "| objective | apa, λ 0.3 |" in text
    assert str(tmp_path.parent) not in text
    assert "[versions.json](versions.json)" in text


def test_a_response_cannot_break_out_of_its_block(summary, tmp_path, config):
    pair = SamplePair(prompt="p", before="```\n# heading", after="fine", score_before=0.0, score_after=0.0)
    text = write_report(tmp_path, replace(summary, samples=[pair]), config).read_text()
    assert "````text\n```\n# heading\n````" in text


def test_secrets_stay_out_of_the_report(summary, tmp_path, config, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted-0123456789")
    config.data.path = "https://hf_planted-0123456789@host/prompts.jsonl"
    assert "planted" not in write_report(tmp_path, summary, config).read_text()


@pytest.mark.parametrize(("seconds", "text"), [(41.23, "41.2 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")])
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
