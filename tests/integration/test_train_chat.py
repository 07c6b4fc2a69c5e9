"""A policy and a reward model with chat templates of their own, through the real commands: train, resume, evaluate.

Expected texts are written out by hand; what the reward model was given is told by its score of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Finished, apa_train, run_command
from hh_data import hh_file
from tiny_models import make_chat_tokenizer, save_policy, save_reward
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

SYSTEM = "Be brief."
CONTEXTS = {  # (policy's prompt, how people read it, reward model's dialogue without the answer)
    "multi": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello there<|im_end|>\n"
        "<|im_start|>assistant\ngood day<|im_end|>\n<|im_start|>user\nthe fox {n}?<|im_end|>\n<|im_start|>assistant\n",
        "system: Be brief.\n\nuser: hello there\n\nassistant: good day\n\nuser: the fox {n}?",
        "<|begin|><|header|>system<|end_header|>\n\nBe brief.<|eot|><|header|>user<|end_header|>\n\nhello there<|eot|>"
        "<|header|>assistant<|end_header|>\n\ngood day<|eot|><|header|>user<|end_header|>\n\nthe fox {n}?<|eot|>",
    ),
    "own": (
        "<|im_start|>system\nJump.<|im_end|>\n<|im_start|>user\nthe dog {n}<|im_end|>\n<|im_start|>assistant\n",
        "system: Jump.\n\nuser: the dog {n}",
        "<|begin|><|header|>system<|end_header|>\n\nJump.<|eot|><|header|>user<|end_header|>\n\nthe dog {n}<|eot|>",
    ),
}
ANSWER = "<|header|>assistant<|end_header|>\n\n{}<|eot|>"
ROWS = 12


def rows() -> list[dict[str, Any]]:
    """Half of them end with the answer that somebody else gave; a quarter are in ShareGPT's words."""
    found: list[dict[str, Any]] = []
    for n in range(ROWS):
        if n % 2 == 0:
            said = [
                ("user", "hello there"),
                ("assistant", "good day"),
                ("user", f"the fox {n}?"),
                ("assistant", "unread"),
            ]
        else:
            said = [("system", "Jump."), ("user", f"the dog {n}")]
        if n % 4 == 0:
            names = {"user": "human", "assistant": "gpt"}
            found.append({"messages": [{"from": names[role], "value": text} for role, text in said]})
        else:
            found.append({"messages": [{"role": role, "content": text} for role, text in said]})
    return found


def expected(text: str) -> tuple[str, str]:
    """(policy's prompt, reward model's dialogue) of the prompt that people read as `text`."""
    for n in range(ROWS):
        for prompt, readable, dialogue in CONTEXTS.values():
            if readable.replace("{n}", str(n)) == text:
                return prompt.replace("{n}", str(n)), dialogue.replace("{n}", str(n))
    raise AssertionError(f"nobody wrote this prompt: {text!r}")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/ ends its turns with a token that is not EOS; reward/ has another template and other tokens."""
    work = tmp_path_factory.mktemp("chat")
    save_policy(work / "policy", make_chat_tokenizer("chatml"), eos_logit=4.0, likely="<|im_end|>")
    save_reward(work / "reward", make_chat_tokenizer("headers", bos=True))
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    (work / "chats.jsonl").write_text(lines, encoding="utf-8")
    (work / "mine.yaml").write_text(
        f"""
defaults: [own]
policy: {{path: {work / "policy"}}}
reward: {{path: {work / "reward"}}}
data: {{path: {work / "chats.jsonl"}, system_prompt: {SYSTEM}}}
generation: {{max_new_tokens: 12}}
objective: {{missing_eos_penalty: 1.0}}
rollout: {{batch_size: 8}}
training: {{iterations: 4, minibatch_size: 4}}
optimizer: {{learning_rate: 1e-3}}
evaluation: {{prompts: 4, every: 0, reward: {{kind: model, path: {work / "reward"}, format: policy}}}}
checkpoint: {{every: 2, keep: 0}}
tracking: {{samples: 8}}
""",
        encoding="utf-8",
    )
    return work


@pytest.fixture(scope="module")
def run(work: Path) -> Finished:
    done = apa_train(work / "run", f"config={work / 'mine.yaml'}")
    assert done.code == 0, done.errors
    return done


@pytest.fixture(scope="module")
def samples(run: Finished) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


@torch.no_grad()
def score(work: Path, text: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(work / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(work / "reward").eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return float(model(input_ids=torch.tensor([ids])).logits)


def test_the_reward_model_reads_its_own_template(work: Path, samples: list[dict[str, Any]]):
    trained = [sample for sample in samples if sample["source"] == "training"]
    assert len(trained) == 4 * 8
    assert len({sample["prompt"][:16] for sample in trained}) == 2
    for sample in trained:
        dialogue = expected(sample["prompt"])[1] + ANSWER.format(sample["response"].strip())
        assert sample["score"] == pytest.approx(score(work, dialogue), abs=1e-4)


def test_the_evaluator_reads_the_policys_text_where_it_is_told_to(work: Path, samples: list[dict[str, Any]]):
    judged = [sample for sample in samples if sample["source"] == "evaluation"]
    assert judged
    found = 0
    for sample in judged:
        text = expected(sample["prompt"])[0] + sample["response"]
        ends = [score(work, text + end) for end in ("<|im_end|>", "<eos>", "")]
        found += any(sample["evaluator"] == pytest.approx(end, abs=1e-4) for end in ends)
    # a response whose special tokens people do not see differs from its text
    assert found >= len(judged) // 2


def test_responses_end_with_the_turn(run: Finished, samples: list[dict[str, Any]]):
    assert "<|im_end|> (the chat template's end of turn)" in run.output + (run.folder / "run.log").read_text()
    assert all("<|im_end|>" not in sample["response"] for sample in samples)
    assert all(line["policy/eos_rate"] > 0.5 for line in run.metrics)
    assert json.loads((run.folder / "final" / "generation_config.json").read_text())["eos_token_id"] == [0, 3]


def test_a_run_that_goes_on_gets_there_too(work: Path, run: Finished):
    longer = apa_train(work / "longer", f"resume={run.folder}/checkpoints/iter_000002")
    assert longer.code == 0, longer.errors
    for ours, theirs in zip(longer.metrics, run.metrics, strict=True):
        for name in ("reward/mean", "kl/to_init", "objective/policy_loss", "policy/response_length"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_hh_dialogues_through_both_templates(work: Path):
    """On real dialogues where they are there: the file is read in place."""
    hh = [f"data.path={hh_file()}", "data.format=hh_chat", "data.system_prompt=null", "data.max_prompt_tokens=400"]
    done = apa_train(work / "hh", f"config={work / 'mine.yaml'}", *hh, "training.iterations=1")
    assert done.code == 0, done.errors
    lines = (done.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    several = 0
    for sample in (sample for sample in map(json.loads, lines) if sample["source"] == "training"):
        said = re.split(r"(?:^|\n\n)(user|assistant): ", sample["prompt"])[1:] or ["user", sample["prompt"]]
        several += len(said) > 2
        turns = "".join(
            f"<|header|>{who}<|end_header|>\n\n{what.strip()}<|eot|>"
            for who, what in zip(said[::2], said[1::2], strict=True)
        )
        dialogue = "<|begin|>" + turns + ANSWER.format(sample["response"].strip())
        assert sample["score"] == pytest.approx(score(work, dialogue), abs=1e-4)
    assert several >= 2


def test_apa_eval_and_the_policy_it_leaves(work: Path, run: Finished):
    done = run_command("apa-eval", f"checkpoint={run.folder}")
    assert done.code == 0, done.errors
    page = next(run.folder.rglob("samples.html")).read_text(encoding="utf-8")
    assert "\n\nuser: the " in page
    assert page.count("system: ") >= 3
    assert "&lt;|im_" not in page
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "final")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(run.folder / "final")
    torch.manual_seed(0)
    ids = model.generate(**prompt, max_new_tokens=200, do_sample=True)[0].tolist()
    assert ids[-1] in (0, 3)
    assert len(ids) < prompt["input_ids"].shape[1] + 200
