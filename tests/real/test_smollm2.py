"""A real language model, SmolLM2-135M-Instruct: `make smollm2` fetches it, and without it these tests are skipped."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from apa_cli import evaluate, train

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="no real model here: make smollm2"),
]
SYSTEM = {"role": "system", "content": "Answer with a number only."}
SUMS = [(a, b) for a in range(2, 18, 3) for b in range(3, 49, 5)]
SMALL = (
    f"policy.path={MODEL}", "reward.kind=math", "reward.answer_column=answer", "data.format=chat",
    "generation.max_new_tokens=12", "rollout.batch_size=8", "rollout.responses_per_prompt=4",
    "training.minibatch_size=4", "evaluation.prompts=4", "optimizer.learning_rate=1e-4",
    "tracking.console=quiet", "tracking.wandb.mode=disabled",
)  # fmt: skip


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    file = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    rows = [
        {"messages": [SYSTEM, {"role": "user", "content": f"What is {a} + {b}?"}], "answer": str(a + b)}
        for a, b in SUMS
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def run(sums, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "run"
    train(None, "config=own", *SMALL, f"data.path={sums}", "objective=gvpo", "policy=lora", "training.iterations=2",
          f"output_dir={folder}")  # fmt: skip
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_its_first_responses_are_the_initial_policys_and_end_as_its_template_says(run):
    first, second = (line for line in lines(run) if "kl/to_init" in line)
    assert first["kl/to_init"] == pytest.approx(0, abs=1e-3)
    assert first["policy/eos_rate"] > 0
    assert second["kl/to_init"] != first["kl/to_init"]
    log = (run / "run.log").read_text(encoding="utf-8")
    assert "<|im_start|>system\\nAnswer with a number only.<|im_end|>" in log
    assert "<|im_end|>" in log.split("a response ends at", 1)[1].splitlines()[0]


def test_a_stopped_run_goes_on_to_the_bit(run, sums, tmp_path):
    words = (
        "config=own",
        *SMALL,
        f"data.path={sums}",
        "objective=gvpo",
        "policy=lora",
        f"output_dir={tmp_path / 'run'}",
    )
    train(None, *words, "training.iterations=1")
    train(None, *words, "training.iterations=2", "resume=auto")
    names = ("reward/mean", "kl/to_init", "objective/policy_loss", "optim/grad_norm")
    ours, theirs = (
        [[line.get(name) for name in names] for line in lines(folder)][-1] for folder in (tmp_path / "run", run)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "words",
    [
        ("objective=apa", "value=shared", "policy=lora"),
        ("objective=ppo", "value=separate", "policy=full"),
        ("objective=a_star_po", "policy=full", "advantage.reference_samples=2", "rollout.responses_per_prompt=1"),
    ],
    ids=" ".join,
)
def test_other_ways_to_train(words, sums, tmp_path):
    place = ("training.iterations=1", f"output_dir={tmp_path / 'run'}", f"rollout.reference_cache={tmp_path}")
    cache = place if "objective=a_star_po" in words else place[:2]
    train(None, "config=own", *SMALL, f"data.path={sums}", *words, *cache)
    (line,) = (line for line in lines(tmp_path / "run") if "kl/to_init" in line)
    assert line["kl/to_init"] == pytest.approx(0, abs=1e-3)


def test_what_is_exported_answers_as_it_did_and_merged_too(run):
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    prompt = tokenizer.apply_chat_template(
        [SYSTEM, {"role": "user", "content": "What is 20 + 3?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), run / "final")
    with torch.no_grad():
        logits = adapted(prompt).logits.log_softmax(-1)
        greedy = adapted.generate(input_ids=prompt, do_sample=False, max_new_tokens=12)
        merged = adapted.merge_and_unload()
        assert torch.allclose(merged(prompt).logits.log_softmax(-1), logits, atol=1e-3)
        assert torch.equal(merged.generate(input_ids=prompt, do_sample=False, max_new_tokens=12), greedy)


def test_apa_eval_judges_it(run, tmp_path):
    judged = evaluate(run, f"output_dir={tmp_path / 'judged'}", "evaluation.prompts=4", "evaluation.decoding=greedy")
    assert 0 <= judged.policies[-1].figures["reward"].value <= 1
    assert judged.policies[-1].figures["unique_fraction"].value > 0
