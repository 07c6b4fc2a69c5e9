"""Run folders read back: finished or not, torn files, and what a user may name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from run_folders import row, write_run

from apa_cli.config.yaml_files import escaped
from apa_cli.runs.folders import FAILED, FINISHED, UNFINISHED, find_runs, is_finished, read_run
from apa_cli.tracking.samples import SamplePair

ROWS = [
    row(0, eval_reward=1.0, eval_kl=0.0),
    row(1, reward_mean=1.5, kl_to_init=0.4, eval_reward=2.0, eval_kl=3.0),
    row(2, reward_mean=1.7, kl_to_init=0.5),
]


def test_the_newest_evaluation_counts(tmp_path: Path):
    run = read_run(write_run(tmp_path / "a", ROWS, seed=7, optimizer__learning_rate=1e-5))
    assert (run.status, run.seed, run.iterations, run.name) == (FINISHED, 7, 2, "a")
    assert (run.first("eval/reward"), run.last("eval/reward"), run.last("eval/kl")) == (1.0, 2.0, 3.0)
    assert run.last("eval/evaluator") is None
    assert run.config["optimizer.learning_rate"] == 1e-5  # a number, though YAML by itself would say text


def test_without_evaluation_the_last_rollout_stands_in(tmp_path: Path):
    run = read_run(write_run(tmp_path / "a", [row(1, reward_mean=1.5, kl_to_init=0.4), row(2, reward_mean=1.7)]))
    assert not run.evaluated
    assert (run.last("eval/reward"), run.last("eval/kl"), run.first("eval/reward")) == (1.7, None, None)


@pytest.mark.parametrize("content", ["", '{"iterations": 2', "[]", '{"seconds": 1}'])
def test_a_torn_summary_is_no_finished_run(tmp_path: Path, content: str):
    folder = write_run(tmp_path / "a", ROWS)
    assert is_finished(folder)
    (folder / "summary.json").write_text(content)
    assert not is_finished(folder)
    assert read_run(folder).status == UNFINISHED


def test_a_failed_run_has_its_reason_unless_it_finished(tmp_path: Path):
    failed = read_run(write_run(tmp_path / "a", ROWS[:1], finished=False, failed="no memory"))
    assert (failed.status, failed.reason) == (FAILED, "no memory")
    finished = read_run(write_run(tmp_path / "b", ROWS, failed="an attempt before"))
    assert (finished.status, finished.reason) == (FINISHED, "")


def test_samples_pair_the_first_answer_with_the_newest(tmp_path: Path):
    folder = write_run(tmp_path / "a", ROWS)
    samples = [
        (0, "evaluation", "p", "one", 1.0),
        (1, "training", "p", "in training", 9.0),
        (1, "evaluation", "p", "two", 2.0),
        (2, "evaluation", "p", "three", 3.0),
        (2, "evaluation", "asked once", "x", 0.0),
    ]
    keys = ("iteration", "source", "prompt", "response", "score")
    lines = [json.dumps(dict(zip(keys, sample, strict=True))) for sample in samples]
    (folder / "samples.jsonl").write_text("\n".join(lines))
    assert read_run(folder).pairs() == [
        SamplePair(prompt="p", before="one", after="three", score_before=1.0, score_after=3.0)
    ]


def test_what_a_user_may_name(tmp_path: Path):
    sweep = tmp_path / "sweep"
    for name in ("b", "a", "c.unfinished-1"):
        write_run(sweep / name, ROWS)
    other = write_run(tmp_path / "other", ROWS)
    (sweep / "plots").mkdir()
    assert find_runs([str(sweep)]) == [sweep / "a", sweep / "b"]
    assert find_runs([str(other), str(tmp_path / "*")]) == [other, sweep / "a", sweep / "b"]
    assert find_runs([str(sweep / "c.unfinished-1")]) == [sweep / "c.unfinished-1"]


@pytest.mark.parametrize("written", ["NaN", "-Infinity", "1e308", "-1e308", "1" + "0" * 400])
def test_what_cannot_be_drawn_is_not_measured(tmp_path: Path, written: str):
    (tmp_path / "metrics.jsonl").write_text(f'{{"iteration": 1, "eval/reward": {written}, "eval/kl": 0.5}}\n')
    run = read_run(tmp_path)
    assert (run.last("eval/reward"), run.last("eval/kl")) == (None, 0.5)


TEXTS = ["a ${x} b", r"\${x}", r"\\${x}", "${nowhere", r"a\b ${x", "x\\", "$x", r"\$ ${a:b} \\ ${c}", "${oc.env:HOME}"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_with_a_dollar_comes_back(tmp_path: Path, text: str):
    OmegaConf.save(OmegaConf.create(escaped({"a": {"b": [text, 1, None]}, "c": text})), tmp_path / "config.yaml")
    read = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"), resolve=True)
    assert read == {"a": {"b": [text, 1, None]}, "c": text}
    assert read_run(tmp_path).config == {"a.b": [text, 1, None], "c": text}
