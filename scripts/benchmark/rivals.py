"""TRL's PPO and GRPO trainers on the same models, prompts, order and settings, held between iterations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark.jobs import GROUP, KL_COEF, LEARNING_RATE, SEED, Job
from benchmark.worker import Stepper

Seconds = dict[str, float]


def hold(stepper: Stepper, steps: int, phases: Callable[[float, Seconds], Seconds]) -> Any:
    """A callback that waits before training and after every `steps` optimizer steps.

    `phases`: of the seconds of an iteration and those of its timed parts, seconds by phase.
    """
    from transformers import TrainerCallback

    class Hold(TrainerCallback):
        count, started = 0, 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            stepper.ready()
            self.started = stepper.now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.count += 1
            if self.count % steps == 0:
                stepper.done(phases(stepper.now() - self.started, stepper.take()))
                self.started = stepper.now()

    return Hold()


def run_ppo(job: Job, folder: Path, device: str, stepper: Stepper) -> None:
    """One optimizer step a minibatch, no gradient checkpointing, no sampled tables: its fastest equal setting."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    policy, reference = (_model(job, folder, "policy") for _ in range(2))
    value, reward = (_model(job, folder, "reward") for _ in range(2))
    rows = [row["ids"] for row in _rows(folder)]
    arguments = PPOConfig(
        **_common(job, device),
        per_device_train_batch_size=job.responses,  # split into minibatches, each of which takes a real step
        gradient_accumulation_steps=1, num_mini_batches=job.responses // job.minibatch, num_ppo_epochs=job.passes,
        local_rollout_forward_batch_size=job.responses, total_episodes=len(rows), response_length=job.response_tokens,
        num_sample_generations=0, kl_coef=KL_COEF, vf_coef=1.0, lam=0.95, stop_token=None,
    )  # fmt: skip
    updating: list[float] = []  # since when; [] before an iteration's first update

    def phases(spent: float, taken: Seconds) -> Seconds:
        update = stepper.now() - updating.pop()
        return {**taken, "update": update, "forward": spent - update - taken["generate"] - taken["score"]}

    trainer = PPOTrainer(
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(folder / "policy", padding_side="left"),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        callbacks=[hold(stepper, 1, phases)],
    )
    # the trainer shuffles always: take the order of the others
    in_order = {"batch_size": job.responses, "shuffle": False, "collate_fn": trainer.data_collator}
    trainer.dataloader = trainer.accelerator.prepare(torch.utils.data.DataLoader(trainer.train_dataset, **in_order))
    ppo_trainer.batch_generation = stepper.timed("generate", ppo_trainer.batch_generation)
    get_reward, accumulate = ppo_trainer.get_reward, trainer.accelerator.accumulate
    scored = stepper.timed("score", get_reward)

    def first_accumulate(*models: Any) -> Any:
        if not updating:
            updating.append(stepper.now())
        return accumulate(*models)

    ppo_trainer.get_reward = lambda model, *args: (scored if model is reward else get_reward)(model, *args)
    trainer.accelerator.accumulate = first_accumulate
    trainer.train()


def run_grpo(job: Job, folder: Path, device: str, stepper: Stepper) -> None:
    """Groups of GROUP responses, the prompts in the order of the others; a reference pass as the others have it."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    prompts = [row["text"] for row in _rows(folder)]
    steps = job.passes * (job.responses // job.minibatch)  # optimizer steps an iteration
    arguments = GRPOConfig(
        **_common(job, device), per_device_train_batch_size=job.minibatch, gradient_accumulation_steps=1,
        steps_per_generation=job.responses // job.minibatch, num_iterations=job.passes, num_generations=GROUP,
        max_steps=steps * (len(prompts) * GROUP // job.responses), max_completion_length=job.response_tokens,
        generation_kwargs={"min_new_tokens": job.response_tokens}, beta=KL_COEF, shuffle_dataset=False,
    )  # fmt: skip

    def phases(spent: float, taken: Seconds) -> Seconds:
        rollout = taken.pop("rollout")
        return {**taken, "forward": rollout - taken["generate"] - taken["score"], "update": spent - rollout}

    trainer = GRPOTrainer(
        model=_model(job, folder, "policy"),
        reward_funcs=_model(job, folder, "reward"),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        peft_config=LoraConfig(r=job.lora, lora_alpha=16, task_type="CAUSAL_LM") if job.lora else None,
        callbacks=[hold(stepper, steps, phases)],
    )
    timed = {"generate": "_generate", "score": "_calculate_rewards", "rollout": "_generate_and_score_completions"}
    for phase, name in timed.items():
        setattr(trainer, name, stepper.timed(phase, getattr(trainer, name)))
    trainer.train()


def _model(job: Job, folder: Path, name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}[name]
    return auto.from_pretrained(folder / name, dtype=torch.bfloat16 if job.precision == "bf16" else torch.float32)


def _common(job: Job, device: str) -> dict[str, Any]:
    off = {"output_dir": "unused", "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    off |= {"gradient_checkpointing": False, "bf16": job.precision == "bf16", "use_cpu": device == "cpu"}
    optimizer = {"learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "adam_beta2": 0.95}
    return {**off, **optimizer, "temperature": 1.0, "seed": SEED}


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Of all batches, in their order."""
    batches = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    return [row for batch in batches for row in batch]
