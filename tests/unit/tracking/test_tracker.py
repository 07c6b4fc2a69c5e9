import json
import logging
from dataclasses import asdict

import pytest
from wandb_file import read_records

from apa_cli.tracking.log import LOGGER
from apa_cli.tracking.metrics import CONTRACT_METRICS, read_metrics
from apa_cli.tracking.report import Outcome, Summary
from apa_cli.tracking.samples import Sample
from apa_cli.tracking.tracker import Tracker

METRICS = dict.fromkeys(CONTRACT_METRICS[1:], 0.5)
EVALUATION = {"eval/reward": 0.25, "eval/kl": 0.0, "eval/entropy": 2.0}
SAMPLES = [Sample(prompt="p", response="r", score=1.0, kl=0.5)]


def summary_of(run_dir):
    return Summary(before=Outcome(reward=0.1), after=Outcome(reward=0.9), iterations=3, seconds=5.0, run_dir=run_dir)


def test_a_whole_run(tmp_path, config, capsys):
    with Tracker(config, tmp_path).begin() as tracker:
        tracker.note("starting")
        tracker.log_evaluation(0, EVALUATION, SAMPLES)
        for iteration in (1, 2, 3):
            tracker.phase("generate", 1, 2)
            evaluated = EVALUATION if iteration == 3 else {}
            tracker.log(iteration, {**METRICS, **evaluated}, SAMPLES)
        tracker.finish(summary_of(tmp_path))
    rows = read_metrics(tmp_path)
    assert rows[0] == {"iteration": 0, **EVALUATION}
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert tuple(rows[1]) == CONTRACT_METRICS
    assert rows[3].items() >= EVALUATION.items()
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(s["iteration"], s["source"]) for s in samples][:2] == [(0, "evaluation"), (1, "training")]
    log = (tmp_path / "run.log").read_text()
    assert all(text in log for text in ("starting", "iteration 3, reward 0.500", "0.100 → 0.900"))
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "starting"
    assert "0.100 → 0.900" in out
    assert str(tmp_path / "plots") in out
    assert (tmp_path / "report.md").exists()
    assert (tmp_path / "plots" / "overview.png").exists()
    assert logging.getLogger(LOGGER).handlers == []


def test_an_evaluation_joins_the_line_of_its_iteration(tmp_path, config):
    with Tracker(config, tmp_path).begin() as tracker:
        tracker.log_evaluation(1, EVALUATION, SAMPLES)
        assert read_metrics(tmp_path) == []
        tracker.log(1, METRICS)
        assert read_metrics(tmp_path) == [{"iteration": 1, **EVALUATION, **METRICS}]
        tracker.log_evaluation(2, EVALUATION, SAMPLES)
    assert read_metrics(tmp_path)[1] == {"iteration": 2, **EVALUATION}  # interrupted before its iteration was logged


def test_a_resumed_run_repeats_no_line(tmp_path, config):
    with Tracker(config, tmp_path).begin() as tracker:
        tracker.log_evaluation(0, EVALUATION, SAMPLES)
        for iteration in (1, 2, 3):
            tracker.log(iteration, METRICS, SAMPLES)
    with Tracker(config, tmp_path, start_iteration=2).begin() as tracker:
        tracker.log(3, {**METRICS, "reward/mean": 9.0}, SAMPLES)
    assert [(row["iteration"], row.get("reward/mean")) for row in read_metrics(tmp_path)] == [
        (0, None),
        (1, 0.5),
        (2, 0.5),
        (3, 9.0),
    ]
    samples = [json.loads(line)["iteration"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert samples == [0, 1, 2, 3]


def test_wandb_gets_the_configuration_without_secrets(tmp_path, config, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted-0123456789")
    config.tracking.wandb.mode = "offline"
    config.data.path = "https://hf_planted-0123456789@host/prompts.jsonl"
    with Tracker(config, tmp_path).begin() as tracker:
        tracker.log(1, METRICS)
    recorded = {}
    for record in read_records(tmp_path):
        if record.WhichOneof("record_type") == "run":
            recorded.update({update.key: json.loads(update.value_json) for update in record.run.config.update})
    assert recorded["objective"] == asdict(config.objective)
    assert recorded["data"]["path"] == "https://***@host/prompts.jsonl"
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"planted" in p.read_bytes()]


def test_what_fails_at_the_end_costs_a_warning(tmp_path, config, monkeypatch, capsys):
    def fail(run_dir):
        raise RuntimeError("no font")

    monkeypatch.setattr("apa_cli.tracking.tracker.draw_run", fail)
    with Tracker(config, tmp_path).begin() as tracker:
        tracker.log(1, METRICS)
        tracker.finish(summary_of(tmp_path))
    captured = capsys.readouterr()
    assert "no font" in captured.err
    assert "0.100 → 0.900" in captured.out


def test_an_error_leaves_nothing_open(tmp_path, config):
    tracker = Tracker(config, tmp_path).begin()
    tracker.log(1, METRICS)
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    tracker.close()
    assert logging.getLogger(LOGGER).handlers == []
    assert len(read_metrics(tmp_path)) == 1
