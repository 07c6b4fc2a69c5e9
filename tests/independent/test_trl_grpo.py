"""GRPO as TRL computes it: two passes over one rollout of TRL's own, the same weights, samples and rewards."""

from types import SimpleNamespace

import pytest
import tiny_models
import torch
from torch.testing import assert_close

from apa_cli.algorithms import Targets
from apa_cli.config.compose import compose_train
from apa_cli.models.device import select_runtime
from apa_cli.models.roles import load_models
from apa_cli.rollouts.sources import add_passes
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.training.state import objective_of
from apa_cli.training.update import accumulate_gradients

trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'apa-cli[bench]'")
K, PROMPTS, LONGEST = 4, 3, 12


def score(ids):
    return len(set(ids)) + ids[0] / 100


def trl_passes(policy, folder, loss_type, beta):
    """Of each pass: the weights before it, what TRL's loss read, the loss and the gradients."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    passes = []

    class Watched(trl.GRPOTrainer):
        def _compute_loss(self, model, inputs):
            weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
            loss = super()._compute_loss(model, inputs)
            passes.append(SimpleNamespace(weights=weights, inputs=inputs, loss=loss.item()))
            return loss

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, arguments, state, control, model=None, **_):
            passes[-1].gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def reward(prompts, completions, completion_ids, **_):
        return [score(ids) for ids in completion_ids]

    arguments = trl.GRPOConfig(
        output_dir=str(folder), save_strategy="no", report_to="none", disable_tqdm=True, seed=5, use_cpu=True,
        bf16=False, gradient_checkpointing=False, learning_rate=0.02, max_grad_norm=0.0, max_steps=2,
        loss_type=loss_type, beta=beta, scale_rewards=loss_type == "grpo", per_device_train_batch_size=K * PROMPTS,
        gradient_accumulation_steps=1, steps_per_generation=1, num_iterations=2, num_generations=K,
        max_completion_length=LONGEST, temperature=1.0, use_bias_correction_kl=False,  # as published
    )  # fmt: skip
    Watched(
        model=AutoModelForCausalLM.from_pretrained(policy),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": tiny_models.UNEVEN[:PROMPTS]}),
        processing_class=AutoTokenizer.from_pretrained(policy, padding_side="left"),
        callbacks=[Gradients()],
    ).train()
    return passes


@pytest.mark.parametrize("preset", ["grpo", "dr_grpo"])
def test_loss_and_gradient_are_trls(preset, policy_dir, tmp_path):
    policy = policy_dir(eos_logit=4.0)
    overrides = [f"objective={preset}", f"policy.path={policy}", f"generation.max_new_tokens={LONGEST}", "device=cpu"]
    config = compose_train([*overrides, f"rollout.responses_per_prompt={K}", f"rollout.batch_size={K * PROMPTS}",
                            "training.minibatch_size=12", "output_dir=x"])  # fmt: skip
    objective = objective_of(config.objective)
    passes = trl_passes(policy, tmp_path, preset, objective.knob.value)
    assert len(passes) == 2

    models = load_models(config, select_runtime("cpu", "fp32"))
    shuffled = passes[0].inputs  # by TRL, with the advantages: a prompt's rows stand apart
    order = sorted(range(K * PROMPTS), key=lambda row: shuffled["prompt_ids"][row].tolist())
    read = {name: shuffled[name][order] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    mask = read["completion_mask"].bool()
    assert len(set(mask.sum(dim=1).tolist())) > 2
    scores = torch.tensor([score(ids[own].tolist()) for ids, own in zip(read["completion_ids"], mask, strict=True)])
    drawn = Trajectory(
        prompt_ids=read["prompt_ids"],
        prompt_mask=read["prompt_mask"].bool(),
        response_ids=read["completion_ids"],
        response_mask=mask,
        ended=torch.ones(len(mask), dtype=torch.bool),
    )
    trajectory = add_passes(
        drawn, models.policy, models.reference, None, temperature=1.0, token_budget=10_000, policy_pass=True
    )
    targets: Targets = objective.targets(
        trajectory, scores, torch.ones(len(mask), dtype=torch.bool), config.advantage, group_size=K
    )
    for found in passes:
        models.policy.model.load_state_dict(found.weights)
        models.policy.model.zero_grad()
        means = accumulate_gradients(
            models, trajectory, targets, torch.arange(len(mask)), objective, config, 60
        )  # several micro-batches
        assert means["objective/policy_loss"].mean() == pytest.approx(found.loss, rel=1e-5, abs=1e-6)
        for name, parameter in models.policy.model.named_parameters():
            assert_close(
                parameter.grad, found.gradients[name], rtol=1e-5, atol=1e-5 * found.gradients[name].norm().item()
            )
    assert passes[1].loss != passes[0].loss
