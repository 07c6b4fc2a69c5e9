"""The benchmark's pure parts against hand arithmetic: medians, ratios, verdicts, the GPU's arithmetic, the page."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path() -> Any:
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path[:] = before


def part(name: str) -> Any:
    return importlib.import_module(f"benchmark.{name}")


def step(seconds: float, beyond: int = 0, **phases: float) -> dict[str, Any]:
    return {"seconds": seconds, "phases": phases, "beyond_bytes": beyond}


def result(*steps: dict[str, Any], weight_bytes: int = 100) -> dict[str, Any]:
    return {"weight_bytes": weight_bytes, "trained_bytes": 40, "steps": list(steps)}


BARE = {"generate": 1.0, "score": 0.5, "forward": 0.5, "forward value": 0.5, "update": 2.0, "update value": 1.5}


@pytest.fixture
def measured() -> dict[str, Any]:
    """Three rounds; the machine is half as fast in the second."""
    return {
        "trl-ppo": result(step(20, 400, update=10), step(40, 500, update=20), step(22, 450, update=10)),
        "ppo-separate": result(step(8, 100, update=5), step(16, 150, update=8), step(10, 120, update=7)),
        "apa-shared": result(step(4, 60, update=3), step(8, 60, update=3), step(5, 60, update=2)),
        "ppo-adapter": result(step(4, 60, update=3)),
        "floor": result(*[step(6, 50, **BARE)] * 3),
    }


def rows(measured: dict[str, Any], job: str = "hh") -> dict[str, Any]:
    jobs, summary = part("jobs"), part("summary")
    chosen = next(j for j in jobs.JOBS if j.name == job)
    return {row.name: row for row in summary.rows(chosen, measured)}


def test_medians_over_rounds(measured: dict[str, Any]):
    row = rows(measured)["ppo-separate"]
    assert (row.seconds, row.rounds, row.beyond_bytes) == (10, 3, 150)
    assert row.responses_per_second == pytest.approx(64 / 10)
    assert row.phases == {"generate": 0, "score": 0, "forward": 0, "update": 7}


def test_ratios_are_taken_within_a_round(measured: dict[str, Any]):
    row = rows(measured)["ppo-separate"]
    assert row.trl_ppo == pytest.approx(2.5)  # of 20/8, 40/16, 22/10
    assert row.memory_trl_ppo == pytest.approx(150 / 500)
    assert row.trl_grpo is None and row.memory_trl_grpo is None


def test_the_floor_of_a_shared_critic_has_no_passes_of_a_critic(measured: dict[str, Any]):
    table = rows(measured)
    assert table["ppo-separate"].floor == pytest.approx(10 / 6.0)
    assert table["ppo-separate"].update_floor == pytest.approx(7 / 3.5)
    assert table["apa-shared"].floor == pytest.approx(5 / 4.0)
    assert table["apa-shared"].update_floor == pytest.approx(3 / 2.0)
    assert table["ppo-adapter"].floor is None
    assert table["floor"].phases == {"generate": 1.0, "score": 0.5, "forward": 1.0, "update": 3.5}


def test_who_failed_has_no_row(measured: dict[str, Any]):
    measured["trl-grpo"] = {"error": "it broke"}
    assert "trl-grpo" not in rows(measured)


def test_verdicts(measured: dict[str, Any]):
    summary = part("summary")
    found = {v.what: v for v in summary.verdicts({"hh": list(rows(measured).values())})}
    words = {what: v.word for what, v in found.items() if what.startswith("HH")}
    assert list(words.values()) == ["met", "met", "missed", "met", "not measured"]
    update = next(v for what, v in found.items() if what.startswith("HH: update"))
    assert update.measured == pytest.approx(2.0)  # the slower of the two that were measured
    assert all(v.word == "not measured" for what, v in found.items() if not what.startswith("HH"))


def test_a_target_is_met_at_its_own_figure():
    summary = part("summary")
    base = rows({"ppo-separate": result(step(1, update=1))})["ppo-separate"]
    at = [summary.verdicts({"hh": [replace(base, trl_ppo=ratio)]})[0].met for ratio in (1.999, 2.0)]
    assert at == [False, True]


def test_memory_of_the_7b_run_is_weights_and_peak():
    summary = part("summary")
    big = {"apa-shared": result(step(1, 15 * 2**30, update=1), weight_bytes=14 * 2**30)}
    verdict = summary.verdicts({"llama-7b-lora": list(rows(big, "llama-7b-lora").values())})[-1]
    assert (verdict.measured, verdict.word) == (29.0, "met")


def test_growth_is_judged_by_token_and_by_size():
    growth = part("growth")

    def at(size: int, tokens: int, seconds: float, working: int) -> Any:
        return growth.Point(size=size, tokens=tokens, seconds=seconds, working_bytes=working)

    points = {
        "response": [at(64, 100, 1.0, 50), at(128, 200, 2.2, 60), at(256, 400, 5.2, 70)],
        "batch": [at(16, 100, 1.0, 100), at(64, 400, 3.0, 105)],
        "vocabulary": [at(8, 100, 1.0, 100), at(128, 100, 9.0, 300)],
    }
    verdicts = growth.verdicts(points)
    assert [v.measured for v in verdicts] == pytest.approx([1.3, 0.75, 1.05, 3.0])
    assert [v.word for v in verdicts] == ["missed", "met", "met", "missed"]
    one = {axis: along[:1] for axis, along in points.items()}
    assert {v.word for v in [*growth.verdicts({}), *growth.verdicts(one)]} == {"not measured"}


def test_every_axis_begins_at_the_same_job():
    growth = part("growth")
    assert len({growth.case(axis, sizes[0]) for axis, sizes in growth.AXES.items()}) == 1
    cases = {growth.case(axis, size).name for axis, sizes in growth.AXES.items() for size in sizes}
    assert len(cases) == 1 + 3 + 2 + 2


def test_working_memory_leaves_out_gradient_and_two_moments():
    growth = part("growth")
    job = growth.case("batch", 64)
    point = growth.point(job, 64, result(step(3, 150), step(1, 170), step(2, 160)))
    assert (point.tokens, point.seconds, point.working_bytes) == (64 * 64, 2, 160 - 3 * 40)


def test_decoding_reads_weights_once_a_step_and_what_came_before():
    jobs, gpu = part("jobs"), part("gpu")
    shape = jobs.Shape(vocabulary=10, hidden=2, layers=3, heads=1, intermediate=5)
    weights = 3 * (4 * 4 + 2 * 2 * 5) + 10 * 2  # 128
    contexts = (4 + 1) + (4 + 2) + (7 + 1) + (7 + 2)  # two steps after the first token, prompts of 4 and 7
    assert gpu.decode_bytes(shape, [4, 7], 3) == 2 * (2 * weights + contexts * 3 * 2 * 2)


def test_operations_of_an_update():
    jobs, gpu = part("jobs"), part("gpu")
    shape = jobs.Shape(vocabulary=10, hidden=2, layers=1, heads=1, intermediate=5)
    job = replace(jobs.JOBS[0], shape=shape, response_tokens=1, passes=1)
    shared = jobs.Contestant(name="apa-shared", kind="ours", objective="apa", value="shared")
    # a prompt of 2 and a response of 1: 3 tokens through 36 weights, 9 pairs of tokens half of which attend, 1 head
    attention = 3 * (2 * 2 * 2 * 9) // 2  # scores and values, forward and twice that backward
    assert gpu.update_flops(job, shared, [2]) == 6 * 36 * 3 + attention + 6 * 20
    separate = replace(shared, value="separate")
    assert gpu.update_flops(job, separate, [2]) == 2 * (6 * 36 * 3 + attention) + 6 * 20


def test_groups_fill_a_budget_with_rows_of_like_length():
    groups = part("floor").groups
    assert groups([3, 10, 3, 9, 3], 20) == [[1, 3], [0, 2, 4]]
    assert groups([30, 2], 20) == [[0], [1]]


def test_every_job_composes_for_every_contestant(tmp_path: Path):
    from apa_cli.config.compose import compose_train

    jobs, ours = part("jobs"), part("ours")
    for job in jobs.JOBS:
        people = jobs.contestants(job, with_trl=True, critics=ours.known_critics(), group=ours.knows_group())
        names = [person.name for person in people]
        assert len(set(names)) == len(names) and {"apa-shared", "ppo-shared", "trl-grpo"} <= set(names)
        assert ("ppo-separate" in names) == ("trl-ppo" in names) == ("floor" in names) == (not job.lora)
        for person in people:
            if person.kind == "ours":
                words = jobs.overrides(job, person, str(tmp_path), str(tmp_path / "p.jsonl"), "cpu", str(tmp_path))
                config = compose_train(words)
                assert (config.objective.name, config.rollout.batch_size) == (person.objective, job.responses)
                assert config.generation.min_new_tokens == job.response_tokens
                assert config.policy.adapter.enabled == bool(job.lora or person.value == "adapter")


def test_a_compiled_twin_differs_in_that_alone(bench: Any, tmp_path: Path):
    jobs = part("jobs")
    plain, twin = bench.chosen(job_named("fixed-2k"), ["apa-shared"], compiling=True)
    words = [jobs.overrides(job_named("fixed-2k"), c, "f", "d", "cpu", "r") for c in (plain, twin)]
    assert set(words[1]) - set(words[0]) == {"training.compile=true"} and len(words[1]) == len(words[0]) + 1
    assert twin.name == "apa-shared-compiled" and not twin.lesser
    assert [c.name for c in bench.chosen(job_named("fixed-2k"), ["apa-shared"])] == ["apa-shared"]


def test_only_a_gpu_runs_the_large_shapes():
    jobs = part("jobs")
    assert [job.name for job in jobs.JOBS if not job.cuda] == ["fixed-2k", "fixed-50k", "hh"]


def record(job: Any, results: dict[str, Any], **facts: str) -> Any:
    told = {
        "hardware": "an abacus",
        "threads": "2",
        "system": "S",
        "versions": "torch 0",
        "date": "2020-01-02",
        **facts,
    }
    lengths = [[job.prompt_tokens] * job.responses]
    return part("records").Record(
        key="k", job=job, prompt_lengths=lengths, results=results, facts=told, commit="abc1234"
    )


def job_named(name: str) -> Any:
    return next(job for job in part("jobs").JOBS if job.name == name)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    return importlib.import_module("bench")


def test_a_record_comes_back_as_it_was_and_only_for_its_own_sizes(tmp_path: Path, measured: dict[str, Any]):
    records, job = part("records"), job_named("hh")
    page = tmp_path / "performance.md"
    assert records.load(page, job) is None
    saved = record(job, measured)
    assert records.save(page, saved) == tmp_path / "performance" / "hh.json"
    assert records.load(page, job) == saved
    assert records.load(page, replace(job, responses=32)) is None


def test_one_job_measured_anew_leaves_the_others_as_they_were(
    tmp_path: Path, measured: dict[str, Any], bench: Any, monkeypatch: pytest.MonkeyPatch
):
    """`--jobs hh` where fixed-2k was measured before, by others: both are on the page, each with its own date."""
    records, rounds, materials = part("records"), part("rounds"), part("materials")
    page = tmp_path / "performance.md"
    before = record(job_named("fixed-2k"), measured, date="2019-05-06", versions="torch older")
    records.save(page, before)

    def build(job: Any, folder: Path, *_: Any, **__: Any) -> Path:
        for name in ("policy", "reward"):
            (folder / name).mkdir(parents=True)
        (folder / "batches.json").write_text(json.dumps([[{"ids": [1, 2]}]]), encoding="utf-8")
        return folder / "prompts.jsonl"

    asked = []
    monkeypatch.setattr(materials, "build", build)
    monkeypatch.setattr(rounds, "measure", lambda job, *_, **__: asked.append(job.name) or measured)
    words = ["--jobs", "hh", "--device", "cpu", "--page", str(page), "--output", str(tmp_path / "out")]
    assert bench.main(words) == 0
    assert asked == ["hh"]
    text = (tmp_path / "tables" / "performance.md").read_text(encoding="utf-8")
    old = text.split("## 64 + 64 tokens, vocabulary 2,048")[1].split("##")[0]
    new = text.split("## HH prompts up to 384")[1].split("##")[0]
    assert "Measured 2019-05-06, commit abc1234, on hardware an abacus" in old and "versions torch older" in old
    assert f"Measured {bench.time.strftime('%Y-%m-%d')}, commit " in new and "2019" not in new
    assert "| ppo-separate | 6.40 " in old and "| ppo-separate | 6.40 " in new
    assert records.load(page, before.job) == before
    assert bench.main(words) == 0  # nothing has changed since
    assert asked == ["hh"]
    written = page.read_text(encoding="utf-8")
    page.unlink()
    assert bench.main([*words, "--rewrite"]) == 0
    assert page.read_text(encoding="utf-8") == written and asked == ["hh"]


def test_growth_is_not_read_across_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    growth, records = part("growth"), part("records")
    page = tmp_path / "performance.md"
    for size, hardware in ((16, "an abacus"), (64, "an abacus"), (256, "another")):
        results = {"apa-shared": result(step(1.0, 200))}
        records.save(page, record(growth.case("batch", size), results, hardware=hardware))
    points, used = growth.measured(page)
    assert [point.size for point in points["batch"]] == [16, 64]
    assert [point.size for point in points["vocabulary"]] == [8192]
    assert {r.job.name for r in used} == {"growth-base", "growth-batch-64"}
    assert "growth-batch-256 was measured elsewhere" in capsys.readouterr().out


def test_the_page_keeps_what_was_tried(tmp_path: Path, measured: dict[str, Any]):
    jobs, page, summary = part("jobs"), part("page"), part("summary")
    file = tmp_path / "docs" / "performance.md"

    def write() -> str:
        one = record(job_named("hh"), {**measured, "trl-grpo": {"error": "it broke"}})
        page.write(
            file,
            records=[one],
            growth={},
            growth_records=[],
            verdicts=summary.verdicts({"hh": list(rows(measured).values())}),
            facts=part("records").together([one]),
            unmeasured=[j for j in jobs.JOBS if j.cuda],
            hardware=[],
        )
        return file.read_text(encoding="utf-8")

    first = write()
    details = (tmp_path / "docs" / "tables" / "performance.md").read_text(encoding="utf-8")
    assert "an abacus" in first and "it broke" in details and page.NOTHING_TRIED in first
    assert "`ppo-separate` 2.50 × with" in first.split("## In short")[1]
    assert (tmp_path / "docs" / "images" / "performance.png").stat().st_size > 5000
    line = next(line for line in details.splitlines() if "HH: PPO, separate value" in line)
    assert [cell.strip() for cell in line.split("|")[2:5]] == ["≥ 2", "2.50", "met"]
    assert "- Pythia 1B shape" in first.split("## Not measured yet")[1]
    file.write_text(first.replace(page.NOTHING_TRIED, "A thing: 1.02 ×."), encoding="utf-8")
    second = write()
    assert "A thing: 1.02 ×." in second.split("## Tried without benefit")[1]
    assert page.NOTHING_TRIED not in second


def test_words_are_tokens():
    """A text of n words is n tokens, also where a response was put right behind its prompt."""
    tokenizer = part("materials")._word_tokenizer(50)
    assert tokenizer("w7 w49 w2")["input_ids"] == [7, 49, 2]
    assert tokenizer("w7 w49" + "w2 w3")["input_ids"] == [7, 49, 2, 3]
    assert tokenizer.decode([7, 49, 2]) == "w7 w49 w2"


def test_materials_lay_out_the_order_that_the_trainer_follows(tmp_path: Path):
    """The batches' prompts are those that the trainer's own stream gives, cut to the job's length."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    jobs, materials = part("jobs"), part("materials")
    job = jobs.quick(next(j for j in jobs.JOBS if j.name == "fixed-2k"))
    prompts = materials.build(job, tmp_path, tmp_path / "unused", iterations=3)
    batches = json.loads((tmp_path / "batches.json").read_text(encoding="utf-8"))
    assert [len(batch) for batch in batches] == [job.responses] * 3
    assert {len(row["ids"]) for batch in batches for row in batch} == {job.prompt_tokens}
    texts = [json.loads(line)["prompt"] for line in prompts.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == materials.ROWS and batches[0][0]["text"] in texts
    assert batches[0][0]["text"] != texts[0]  # shuffled
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer(batches[2][5]["text"])["input_ids"] == batches[2][5]["ids"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert model.config.vocab_size == job.shape.vocabulary


def test_the_hh_job_has_a_tokenizer_of_the_dialogues_and_as_many_prompts_as_it_takes(tmp_path: Path):
    jobs, materials = part("jobs"), part("materials")
    job = jobs.quick(next(j for j in jobs.JOBS if j.name == "hh"))
    job = replace(job, shape=replace(job.shape, vocabulary=300))
    said = [f"\n\nHuman: Is {n} odd?\n\nAssistant:" for n in range(200)]
    data = tmp_path / "hh.jsonl"
    data.write_text("".join(json.dumps({"chosen": s + " Yes.", "rejected": s + " No."}) + "\n" for s in said), "utf-8")
    assert materials.build(job, tmp_path / "job", data, iterations=2) == data
    batches = json.loads((tmp_path / "job" / "batches.json").read_text("utf-8"))
    assert [len(batch) for batch in batches] == [job.responses] * 2
    assert json.loads((tmp_path / "job" / "reward" / "config.json").read_text("utf-8"))["vocab_size"] == 300
