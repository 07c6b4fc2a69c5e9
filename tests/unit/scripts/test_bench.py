"""The benchmark's pure parts against hand arithmetic: medians, ratios, materials."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

import bench
from benchmark import jobs, materials, rounds, summary

JOBS = {job.name: job for job in jobs.JOBS}


def step(seconds: float, beyond: int = 0, **phases: float) -> dict[str, Any]:
    return {"seconds": seconds, "phases": phases, "beyond_bytes": beyond}


def result(*steps: dict[str, Any], weight_bytes: int = 100) -> dict[str, Any]:
    return {"weight_bytes": weight_bytes, "trained_bytes": 40, "steps": list(steps)}


@pytest.fixture
def measured() -> dict[str, Any]:
    """Three rounds; the machine is half as fast in the second."""
    return {
        "trl-ppo": result(step(20, 400, update=10), step(40, 500, update=20), step(22, 450, update=10)),
        "ppo-separate": result(step(8, 100, update=5), step(16, 150, update=8), step(10, 120, update=7)),
        "apa-shared": result(step(4, 60, update=3), step(8, 60, update=3), step(5, 60, update=2)),
        "ppo-adapter": result(step(4, 60, update=3)),
        "trl-grpo": {"error": "it broke"},
    }


def test_medians_over_rounds_and_ratios_within_a_round(measured: dict[str, Any]):
    table = summary.rows(JOBS["hh"], measured)
    row = table["ppo-separate"]
    assert (row["seconds"], row["responses/s"], row["memory, MiB"]) == (10, 64 / 10, 150 / 2**20)
    assert [row[phase] for phase in summary.PHASES] == [0, 0, 0, 7]
    assert row["× TRL PPO"] == pytest.approx(2.5)  # of 20/8, 40/16, 22/10
    assert row["÷ TRL PPO's"] == pytest.approx(150 / 500)
    assert row["× TRL GRPO"] is None and row["÷ TRL GRPO's"] is None and "trl-grpo" not in table
    assert summary.cells(row)[:2] == ["6.40", "10.00"]


def test_operations_of_an_iteration_by_hand():
    """64 responses of 16 tokens to 8 prompts of 32, a trunk of 30 layers with grouped keys, LoRA, 2 passes."""
    M = 30 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536)
    head = 2 * 49152 * 576 * 1024
    one = 2 * M * (8 * 32 + 1024) + 4 * 576 * 30 * 8 * 160**2 / 2 + head
    sampling = 2 * M * 1280 + 4 * 576 * 30 * 64 * 48**2 / 2 + head
    assert jobs.work(JOBS["smollm2"], "apa-group", 32) == (1280, pytest.approx(sampling + 5 * one))
    assert jobs.work(JOBS["smollm2"], "apa-group-plain", 32)[0] == 3072
    assert jobs.work(JOBS["smollm2"], "ppo-shared", 32) is None


def test_every_job_composes_for_every_contestant(tmp_path: Path):
    from apa_cli.config.compose import compose_train

    for job in jobs.JOBS:
        people = jobs.contestants(job, with_trl=True)
        names = [person.name for person in people]
        if job.alone:
            assert names == {"shared": ["apa-shared"], "group": ["apa-group", "apa-group-plain"]}[job.alone]
            continue
        assert len(set(names)) == len(names) and {"apa-shared", "ppo-shared", "trl-grpo"} <= set(names)
        assert ("ppo-separate" in names) == ("trl-ppo" in names) == (not job.lora)
        for person in (person for person in people if person.kind == "ours"):
            words = jobs.overrides(job, person, str(tmp_path), str(tmp_path / "p.jsonl"), "cpu", str(tmp_path))
            config = compose_train(words)
            assert (config.objective.name, config.rollout.batch_size) == (person.objective, job.responses)
            assert config.generation.min_new_tokens == job.response_tokens
            assert config.policy.adapter.enabled == bool(job.lora or person.value == "adapter")
    assert [job.name for job in jobs.JOBS if not job.cuda][:5] == [
        *("fixed-2k", "fixed-50k", "hh", "smollm2", "growth-base")
    ]


def test_one_job_measured_anew_leaves_the_others_as_they_were(
    tmp_path: Path, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    def build(job: Any, folder: Path, *_: Any, **__: Any) -> Path:
        for name in ("policy", "reward"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "batches.json").write_text(json.dumps([[{"ids": [1, 2]}]]), encoding="utf-8")
        return folder / "prompts.jsonl"

    monkeypatch.setattr(materials, "build", build)
    monkeypatch.setattr(rounds, "measure", lambda job, people, **_: measured)
    target = tmp_path / "performance.md"
    monkeypatch.setattr(bench, "PAGE", target)
    target.write_text("Prose.\n<!-- performance: written -->\nold\n<!-- end of performance -->\nTried.\n", "utf-8")
    words = ["--output", str(tmp_path / "out")]
    monkeypatch.setattr(bench, "commit", lambda: "abc1234")
    assert bench.main([*words, "--jobs", "fixed-2k"]) == 0
    monkeypatch.setattr(bench, "commit", lambda: "def5678")
    assert bench.main([*words, "--jobs", "hh"]) == 0
    text, details = (p.read_text("utf-8") for p in (target, tmp_path / "tables" / "performance.md"))
    assert text.startswith("Prose.\n") and text.endswith("<!-- end of performance -->\nTried.\n") and "old" not in text
    assert "`ppo-separate` 2.50 × with 0.30 × the memory of PPO" in text and "64 + 64 tokens, vocabulary 50,304" in text
    before, after = details.split("## HH prompts")
    assert "commit abc1234" in before and "commit def5678" in after and "trl-grpo failed: it broke" in after
    assert "| ppo-separate | 6.40 | 10.00 |" in after
    assert json.loads((tmp_path / "performance" / "hh.json").read_text("utf-8"))["results"] == measured
    assert (tmp_path / "images" / "performance.png").stat().st_size > 5000


def test_a_contestant_that_ends_is_left_out_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Real processes, one of which fails; the other is stepped and stopped."""
    worker = tmp_path / "benchmark"
    worker.mkdir()
    (worker / "__init__.py").touch()
    (worker / "worker.py").write_text(
        "import json, sys\n"
        "if 'broken' in sys.argv[2]: sys.exit('no room')\n"
        "print(json.dumps({'weight_bytes': 1, 'trained_bytes': 1}), flush=True)\n"
        "for _ in sys.stdin: print(json.dumps({'seconds': 1, 'phases': {}, 'beyond_bytes': 2}), flush=True)\n",
        "utf-8",
    )
    monkeypatch.setattr(rounds, "SCRIPTS", tmp_path)
    people = [jobs.Contestant(name="broken"), jobs.Contestant(name="apa-shared"), jobs.Contestant(name="ppo-shared")]
    found = rounds.measure(jobs.GROWTH, people, folder=tmp_path, data=tmp_path, device="cpu", threads=1, rounds=2)
    assert found["broken"] == {"error": "no room"}
    assert [len(found[name]["steps"]) for name in ("apa-shared", "ppo-shared")] == [2, 1]  # the lesser leaves
    assert found["apa-shared"]["warm_up"]["beyond_bytes"] == 2


def test_materials_lay_out_the_order_that_the_trainer_follows(tmp_path: Path):
    """The batches' prompts are those that the trainer's own stream gives, cut to the job's length."""
    from transformers import AutoTokenizer

    job = jobs.quick(JOBS["fixed-2k"])
    prompts = materials.build(job, tmp_path, tmp_path / "unused", iterations=3)
    batches = json.loads((tmp_path / "batches.json").read_text(encoding="utf-8"))
    assert [len(batch) for batch in batches] == [job.responses] * 3
    assert {len(row["ids"]) for batch in batches for row in batch} == {job.prompt_tokens}
    texts = [json.loads(line)["prompt"] for line in prompts.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == materials.ROWS and batches[0][0]["text"] in texts
    assert batches[0][0]["text"] != texts[0]  # shuffled
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer(batches[2][5]["text"])["input_ids"] == batches[2][5]["ids"]
