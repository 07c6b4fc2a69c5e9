"""apa-train against a second implementation: after 18 updates, the same metrics and the same weights.

`reference_run` computes in float64, so that a difference is the rounding of the product's float32. On a tensor it is at
most 2e-5 of the distance that the tensor moved, and usually 5e-6: a layer norm's weights lie near 1, are rounded by up
to 6e-8 in each update, and move by about 0.05. On a metric it is 2e-5, or 5e-7 in a mean KL near 0.
"""

import ast
import json
import math
import string
from pathlib import Path

import pytest
import tiny_models
from independent import reference_run
from independent.record import recorded_run
from safetensors.torch import load_file

OF_WEIGHTS = 1e-4  # of the distance that a tensor moved
OF_METRICS = {"rel": 1e-4, "abs": 3e-6}
SETTINGS = {
    "seed": 3,
    "device": "cpu",
    "reward.kind": "function",
    "reward.function": "independent.record:reward",
    "reward.length_penalty": 0.2,
    "reward.length_target": 4,
    "generation.max_new_tokens": 6,
    "generation.temperature": 0.8,
    "generation.stop_tokens": list(string.ascii_letters),  # one token in six: responses of 1 to 6 tokens
    "policy.adapter.alpha": 4,
    "policy.adapter.path": None,
    "value.warmup_iterations": 0,
    "objective.kl_lambda": 0.7,
    "objective.kl_coef": 0.1,
    "objective.kl_target": None,
    "objective.kl_lambda_min": 0.1,
    "objective.kl_lambda_max": 2.0,
    "objective.kl_gain": 0.3,
    "objective.kl_damping": 1.5,
    "objective.kl_horizon": 100,
    "objective.level": "token",
    "objective.anchor": "initial",
    "objective.length_divisor": None,
    "objective.score_scaling": "running",
    "advantage.baseline": "leave_one_out",
    "advantage.whiten": True,
    "objective.target_bound": None,
    "objective.huber_delta": None,
    "objective.clip_range": 0.1,
    "objective.missing_eos_penalty": 0.5,
    "objective.score_clip": 1.5,
    "rollout.batch_size": 8,
    "training.iterations": 3,
    "training.epochs_per_rollout": 2,
    "training.minibatch_size": 3,
    "training.shuffle": "groups",
    "training.microbatch_tokens": 24,  # of 3 rows with up to 18 tokens each
    "optimizer.learning_rate": 0.01,
    "optimizer.betas": [0.9, 0.95],
    "optimizer.eps": 1e-4,  # AdamW divides by it where a gradient is 0 but for rounding, as that of a key's bias
    "optimizer.weight_decay": 0.1,
    "optimizer.max_grad_norm": 0.5,
    "optimizer.warmup_iterations": 2,
    "evaluation.prompts": 0,
    "checkpoint.every": 0,
    "tracking.console": "quiet",
    "tracking.wandb.mode": "disabled",
}
CRITIC = {
    "value.keep": True,
    "advantage.name": "gae",
    "advantage.gamma": 0.97,
    "advantage.gae_lambda": 0.8,
    "objective.value_coef": 0.5,
    "objective.value_clip_range": 0.1,
    "optimizer.value_learning_rate": 0.02,
}
GROUP = {"advantage.name": "group", "advantage.group_scale": False, "rollout.responses_per_prompt": 4}
RAW = {"objective.score_scaling": "none", "advantage.whiten": False}  # scores in units of their own
SEQUENCE = RAW | {"objective.level": "sequence"}
LEAST_SQUARES = SEQUENCE | {"advantage.baseline": "least_squares", "training.minibatch_size": 4}
UNSCORED = {"reward.function": "independent.record:reward_of_more_than_one_token"}
WARMUP = {"value.warmup_iterations": 1}
RECOMPUTED = {"policy.gradient_checkpointing": True}
CASES = {  # Llama's head is tied to its embeddings, GPT-NeoX's is not
    "apa separate full gpt_neox": RECOMPUTED,
    "apa separate lora llama": {"objective.target_bound": 1.0, "objective.huber_delta": 0.5},
    "apa shared full gpt_neox": {"objective.kl_target": 0.05},
    "apa shared lora llama": RECOMPUTED,
    "apa adapter lora gpt_neox": WARMUP,
    "apa adapter trained gpt_neox": RECOMPUTED,
    "apa none full llama": {"training.minibatch_size": 4},
    "apa none lora gpt_neox": UNSCORED,
    "awr separate full llama": UNSCORED,
    "awr separate lora gpt_neox": RECOMPUTED,
    "awr shared full llama": {},
    "awr shared lora gpt_neox": {"objective.kl_target": 0.001},
    "awr adapter lora llama": RECOMPUTED,
    "awr none full gpt_neox": {"advantage.group_scale": True},
    "awr none lora llama": {},
    "ppo separate full gpt_neox": {"objective.kl_target": 0.1},
    "ppo separate lora llama": WARMUP,
    "ppo shared full gpt_neox": WARMUP | RECOMPUTED,
    "ppo shared lora llama": UNSCORED,
    "ppo adapter lora gpt_neox": {},
    "ppo none full llama": UNSCORED,
    "ppo none lora gpt_neox": {"advantage.group_scale": True},
    "ppo none lora llama": SEQUENCE,  # rloo
    "grpo none full llama": RAW | {"advantage.baseline": "mean", "advantage.group_scale": True},
    "grpo none lora gpt_neox": RAW
    | UNSCORED
    | {"advantage.baseline": "mean", "objective.length_divisor": 6},  # dr_grpo
    "apa none lora llama": RAW | {"objective.anchor": "rollout", "advantage.baseline": "mean"},  # dro
    "apa none full gpt_neox": SEQUENCE | {"objective.anchor": "rollout", "advantage.baseline": "mean"},  # pmd_mean
    "apa none trained gpt_neox": LEAST_SQUARES | UNSCORED,  # gvpo
    "apa none trained llama": SEQUENCE | {"advantage.baseline": "log_mean_exp", "objective.target_bound": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_run_written_twice(case, policy_dir, tmp_path):
    objective, critic, weights, family = case.split()
    data, policy = tmp_path / "prompts.jsonl", policy_dir(kind=family, dropout=0.2)
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in tiny_models.UNEVEN), encoding="utf-8")
    settings = SETTINGS | (GROUP if critic == "none" else CRITIC) | CASES[case]
    settings |= {"objective.name": objective, "value.kind": critic, "policy.adapter.r": 2 * (weights == "lora")}
    settings |= {"policy.path": str(policy), "data.path": str(data)}
    if weights == "trained":
        settings["policy.adapter.path"] = str(tiny_models.save_adapter(tmp_path / "adapter", policy, scale=0.1))
    recorded, lines = recorded_run(settings, tmp_path / "run")
    assert len({len(ids) for iteration in recorded for ids in iteration["responses"]}) > 3
    assert any(None in iteration["scores"] for iteration in recorded) == (UNSCORED.items() <= CASES[case].items())
    expected_lines = reference_run.reference_run(settings, recorded, tmp_path)
    for line, expected in zip(lines, expected_lines, strict=True):
        found = {name: math.nan if line[name] is None else line[name] for name in expected}
        assert found == pytest.approx(expected, **OF_METRICS, nan_ok=True), line["iteration"]
    trained, before, after = (weights_in(tmp_path / folder) for folder in ("run/final", "before", "after"))
    assert trained.keys() == after.keys()
    for name, weight in trained.items():
        moved, off = (after[name] - before[name]).norm().item(), (after[name] - weight).norm().item()
        assert moved > 0
        assert off < OF_WEIGHTS * moved, name


def weights_in(folder):
    files = {str(file.parent.relative_to(folder)): load_file(file) for file in sorted(folder.rglob("*.safetensors"))}
    return {f"{file}: {name}": weight for file, tensors in files.items() for name, weight in tensors.items()}


def test_the_second_implementation_shares_no_code_with_the_first():
    tree = list(ast.walk(ast.parse(Path(reference_run.__file__).read_text(encoding="utf-8"))))
    names = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in tree if isinstance(node, ast.ImportFrom)]
    allowed = {"collections", "math", "peft", "safetensors", "statistics", "torch", "transformers", "types"}
    assert {name.partition(".")[0] for name in names} == allowed
