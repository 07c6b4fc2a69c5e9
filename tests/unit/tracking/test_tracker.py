import logging

import pytest

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


def test_an_evaluation_joins_the_line_of_its_iteration(tmp_path, config):
    with Tracker(config, tmp_path).begin() as tracker:
        tracker.log_evaluation(1, EVALUATION, SAMPLES)
        assert read_metrics(tmp_path) == []
        tracker.log(1, METRICS)
        assert read_metrics(tmp_path) == [{"iteration": 1, **EVALUATION, **METRICS}]
        tracker.log_evaluation(2, EVALUATION, SAMPLES)
    assert read_metrics(tmp_path)[1] == {"iteration": 2, **EVALUATION}  # interrupted before its iteration was logged


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
