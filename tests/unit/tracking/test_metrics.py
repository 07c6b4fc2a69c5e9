import json
import math

import numpy as np
import pytest

from apa_cli.tracking.metrics import CONTRACT_METRICS, MetricsFile, read_metrics
from apa_cli.tracking.samples import Sample, SamplesFile


def write(path, iterations, *, start_iteration=None):
    file = MetricsFile(path, start_iteration=start_iteration)
    for iteration in iterations:
        file.log(iteration, {"reward/mean": iteration / 2})
    file.close()


def iterations_of(path):
    return [row["iteration"] for row in read_metrics(path)]


def test_each_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.log(1, {"reward/mean": 0.25, "memory/peak_bytes": 12_345_678_901})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"iteration": 1, "reward/mean": 0.25, "memory/peak_bytes": 12345678901}\n'
    )


def test_iteration_comes_first_and_cannot_be_overwritten(tmp_path):
    MetricsFile(tmp_path / "m.jsonl").log(3, {"reward/mean": 1.0, "iteration": 99})
    assert (tmp_path / "m.jsonl").read_text() == '{"iteration": 3, "reward/mean": 1.0}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_is_null(tmp_path, value):
    MetricsFile(tmp_path / "m.jsonl").log(1, {"kl/to_init": value})
    assert (tmp_path / "m.jsonl").read_text() == '{"iteration": 1, "kl/to_init": null}\n'


def test_scalars_of_libraries_are_numbers(tmp_path):
    MetricsFile(tmp_path / "m.jsonl").log(1, {"a": np.float32(0.5), "b": np.int64(2)})
    assert read_metrics(tmp_path / "m.jsonl") == [{"iteration": 1, "a": 0.5, "b": 2.0}]


def test_an_iteration_is_written_once(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl")
    file.log(1, {})
    with pytest.raises(ValueError, match="iteration 1 after"):
        file.log(1, {})


def test_a_resumed_run_drops_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(0, 6))
    with path.open("a") as file:
        file.write('{"iteration": 6, "rew')
    assert iterations_of(path) == [0, 1, 2, 3, 4, 5]
    write(path, [4, 5, 6], start_iteration=3)
    assert iterations_of(tmp_path) == [0, 1, 2, 3, 4, 5, 6]  # a folder stands for its file
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_from_the_start_begins_an_empty_file(tmp_path):
    write(tmp_path / "m.jsonl", range(0, 4))
    write(tmp_path / "m.jsonl", [0, 1])
    assert iterations_of(tmp_path / "m.jsonl") == [0, 1]


def test_damage_before_the_last_line_is_an_error(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"iteration": 1}\nbroken\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path / "m.jsonl")


def test_no_file_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "m.jsonl") == []


def test_the_contract_names_are_distinct_and_begin_with_the_iteration():
    assert CONTRACT_METRICS[0] == "iteration"
    assert len(set(CONTRACT_METRICS)) == len(CONTRACT_METRICS) == 25


def test_samples_keep_any_text_and_are_rewound_too(tmp_path):
    path = tmp_path / "samples.jsonl"
    odd = "line\nbreak \u2028 \udc80 “ü”"
    file = SamplesFile(path)
    file.log(1, [Sample(prompt="p", response=odd, score=1.0, kl=math.nan)], source="training")
    file.log(2, [Sample(prompt="p", response="r", score=1.0, kl=0.5, evaluator=2.0)], source="evaluation")
    file.close()
    first, second = (json.loads(line) for line in path.read_bytes().split(b"\n") if line)
    assert first == {"iteration": 1, "source": "training", "prompt": "p", "response": odd, "score": 1.0, "kl": None}
    assert second["evaluator"] == 2.0
    SamplesFile(path, start_iteration=1).close()
    assert [json.loads(line)["iteration"] for line in path.read_bytes().split(b"\n") if line] == [1]
