"""TRL's PPO and GRPO trainers on the same models, prompts, order and settings, held between iterations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmark.jobs import GROUP, KL_COEF, LEARNING_RATE, SEED, Job
from benchmark.stepper import Phases, Stepper


def run_ppo(job: Job, folder: Path, device: str, stepper: Stepper) -> None:
    """One optimizer step a minibatch, no gradient checkpointing, no sampled tables: its fastest equal setting."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=dtype) for _ in range(2))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=dtype) for _ in range(2)
    )
    rows = [row["ids"] for batch in _batches(folder) for row in batch]
    arguments = PPOConfig(
        **_common(job, device),
        per_device_train_batch_size=job.responses,  # split into minibatches, each of which takes a real step
        gradient_accumulation_steps=1,
        num_mini_batches=job.responses // job.minibatch,
        num_ppo_epochs=job.passes,
        local_rollout_forward_batch_size=job.responses,
        total_episodes=len(rows),
        response_length=job.response_tokens,
        num_sample_generations=0,
        kl_coef=KL_COEF,
        vf_coef=1.0,
        lam=0.95,
        stop_token=None,
    )
    phases, started = Phases(stepper), {"at": 0.0, "update": 0.0}

    class Hold(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            stepper.ready()
            started["at"] = phases.now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = phases.now()
            phases.add("update", now - started["update"])
            spent = started["update"] - started["at"]
            taken = phases.take()
            taken["forward"] = spent - taken["generate"] - taken["score"]
            started["update"] = 0.0
            stepper.done(taken)
            started["at"] = phases.now()

    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        callbacks=[Hold()],
    )
    # the trainer shuffles always: take the order of the others
    trainer.dataloader = trainer.accelerator.prepare(
        torch.utils.data.DataLoader(
            trainer.train_dataset, batch_size=job.responses, shuffle=False, collate_fn=trainer.data_collator
        )
    )
    ppo_trainer.batch_generation = phases.timed("generate", ppo_trainer.batch_generation)
    get_reward, accumulate = ppo_trainer.get_reward, trainer.accelerator.accumulate

    def score_or_value(model: Any, *args: Any) -> Any:
        if model is not reward:
            return get_reward(model, *args)
        return phases.timed("score", get_reward)(model, *args)

    def first_accumulate(*models: Any) -> Any:
        started["update"] = started["update"] or phases.now()
        return accumulate(*models)

    ppo_trainer.get_reward = score_or_value
    trainer.accelerator.accumulate = first_accumulate
    trainer.train()


def run_grpo(job: Job, folder: Path, device: str, stepper: Stepper) -> None:
    """Groups of GROUP responses, the prompts in the order of the others; a reference pass as the others have it."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=dtype)
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=dtype)
    prompts = [row["text"] for batch in _batches(folder) for row in batch]
    steps = job.passes * (job.responses // job.minibatch)  # optimizer steps an iteration
    arguments = GRPOConfig(
        **_common(job, device),
        per_device_train_batch_size=job.minibatch,
        gradient_accumulation_steps=1,
        steps_per_generation=job.responses // job.minibatch,
        num_iterations=job.passes,
        num_generations=GROUP,
        max_steps=steps * (len(prompts) * GROUP // job.responses),
        max_completion_length=job.response_tokens,
        generation_kwargs={"min_new_tokens": job.response_tokens},
        beta=KL_COEF,
        shuffle_dataset=False,
    )
    phases, started, count = Phases(stepper), {"at": 0.0, "rollout": 0.0}, {"steps": 0}

    class Hold(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            stepper.ready()
            started["at"] = phases.now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            count["steps"] += 1
            if count["steps"] % steps:
                return
            spent = phases.now() - started["at"]
            taken = phases.take()
            rollout = taken.pop("rollout")
            taken["forward"] = rollout - taken["generate"] - taken["score"]
            taken["update"] = spent - rollout
            stepper.done(taken)
            started["at"] = phases.now()

    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        peft_config=_lora(job),
        callbacks=[Hold()],
    )
    trainer._generate = phases.timed("generate", trainer._generate)
    trainer._calculate_rewards = phases.timed("score", trainer._calculate_rewards)
    trainer._generate_and_score_completions = phases.timed("rollout", trainer._generate_and_score_completions)
    trainer.train()


def _common(job: Job, device: str) -> dict[str, Any]:
    return {
        "output_dir": "unused",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "bf16": job.precision == "bf16",
        "use_cpu": device == "cpu",
        "adam_beta2": 0.95,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": SEED,
    }


def _lora(job: Job) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=job.lora, lora_alpha=16, task_type="CAUSAL_LM") if job.lora else None


def _batches(folder: Path) -> list[list[dict[str, Any]]]:
    batches: list[list[dict[str, Any]]] = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    return batches
