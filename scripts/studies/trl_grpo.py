"""One run of TRL's GRPO on the built-in task, in a process of its own: `python -m studies.trl_grpo SPEC.json`.

It leaves config.yaml, overrides.yaml, metrics.jsonl and summary.json in the form that a run of apa-train does. The
policy that TRL trains is judged by apa-train's own evaluation, on the same held-out prompts, between iterations and
outside the timed part.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = "reviews_apa_group"  # task, models, prompts and sizes are this recipe's
KEPT = (
    "loss_type",
    "scale_rewards",
    "epsilon",
    "beta",
    "num_iterations",
    "num_generations",
    "steps_per_generation",
    "per_device_train_batch_size",
    "temperature",
    "top_k",
    "top_p",
    "learning_rate",
    "lr_scheduler_type",
    "adam_beta1",
    "adam_beta2",
    "weight_decay",
    "max_grad_norm",
    "max_completion_length",
)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch

    torch.set_num_threads(1)
    from apa_cli.config.compose import compose_train

    words = [f"config={RECIPE}", f"seed={spec['seed']}"]
    words += [f"training.iterations={spec['iterations']}", f"evaluation.prompts={spec['prompts']}"]
    run(compose_train(words), spec, Path(spec["folder"]))


def run(config: Any, spec: dict[str, Any], folder: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from apa_cli.assets.resolve import resolve_path
    from apa_cli.data.loading import load_prompts
    from apa_cli.data.prompts import PromptStream
    from apa_cli.models.device import select_runtime
    from apa_cli.models.roles import load_models

    models = load_models(config, select_runtime("cpu", "fp32"))
    policy, training, k = models.policy, config.training, config.rollout.responses_per_prompt
    train, held_out = load_prompts(
        config.data, policy.tokenizer, evaluation_prompts=config.evaluation.prompts, seed=config.seed
    )
    stream = PromptStream(
        train.prompts, batch_size=config.rollout.prompts, seed=config.seed, pad_token_id=policy.pad_token_id
    )
    prompts = [text for _ in range(training.iterations) for text in next(stream).texts]
    minibatches = config.rollout.batch_size // training.minibatch_size
    arguments = GRPOConfig(
        output_dir=str(folder / "unused"),
        learning_rate=spec["rate"],
        lr_scheduler_type="constant",
        adam_beta2=config.optimizer.betas[1],
        max_grad_norm=config.optimizer.max_grad_norm,
        beta=spec["beta"],
        per_device_train_batch_size=training.minibatch_size,
        gradient_accumulation_steps=1,
        steps_per_generation=minibatches,
        num_iterations=training.epochs_per_rollout,
        num_generations=k,
        max_steps=minibatches * training.epochs_per_rollout * training.iterations,
        max_completion_length=config.generation.max_new_tokens,
        temperature=1.0,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=minibatches * training.epochs_per_rollout,  # once an iteration
        seed=config.seed,
    )
    recorder = recorder_of(config, models, held_out.prompts, folder, steps=minibatches * training.epochs_per_rollout,
                           every=spec["every"])  # fmt: skip
    trainer = GRPOTrainer(
        model=policy.model.train(),
        reward_funcs=reward_of(models, recorder),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(resolve_path(config.policy.path), padding_side="left"),
        callbacks=[recorder],
    )
    write_settings(folder, config, arguments, spec)
    trainer.train()
    summary = {"iterations": training.iterations, "seconds": sum(row.get("time/iteration", 0) for row in recorder.rows)}
    (folder / "summary.json").write_text(json.dumps(summary) + "\n", "utf-8")


def reward_of(models: Any, recorder: Any) -> Any:
    """The reward as apa-train reads it: the sampled tokens, the end of text among them.

    TRL's own way with a reward model, the decoded completion, drops that token, at which the built-in model was trained
    to give its score.
    """
    from apa_cli.rewards.record import FinishedResponses

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        before = models.policy.tokenizer(prompts)["input_ids"]
        tokens = [first + list(rest) for first, rest in zip(before, completion_ids, strict=True)]
        finished = FinishedResponses(
            prompts=prompts, responses=completions, messages=None, columns={}, token_ids=tokens
        )
        scores: list[float] = models.scorer(finished)
        recorder.reward = statistics.fmean(scores)
        return scores

    return reward


def recorder_of(config: Any, models: Any, held_out: Any, folder: Path, *, steps: int, every: int) -> Any:
    """A callback that writes a row an iteration: mean reward, seconds, and at the interval the evaluation."""
    from transformers import TrainerCallback

    from apa_cli.evaluation.judge import evaluate
    from apa_cli.training.run import seed_everything

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.rows: list[dict[str, Any]] = []
            self.initial: Any = None
            self.reward = 0.0
            self.began = (0.0, 0.0)

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.write({"iteration": 0, **self.judge()})
            seed_everything(config.seed)
            self.began = clocks()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **__: Any) -> None:
            if state.global_step % steps:
                return
            spent = [now - then for now, then in zip(clocks(), self.began, strict=True)]
            iteration = state.global_step // steps
            row = {"iteration": iteration, "reward/mean": self.reward}
            row |= {"time/cpu": spent[0], "time/iteration": spent[1]}
            if iteration % every == 0 or iteration == config.training.iterations:
                row |= self.judge()
            self.write(row)
            self.began = clocks()

        def judge(self) -> dict[str, float]:
            model = models.policy.model
            model.eval()
            judged = evaluate(models, held_out, config, self.initial and self.initial.opponents)
            model.train()
            self.initial = self.initial or judged
            return judged.metrics

        def write(self, row: dict[str, Any]) -> None:
            self.rows.append(row)
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    return Recorder()


def clocks() -> tuple[float, float]:
    """Seconds of this process's processor time, and of the wall."""
    return time.process_time(), time.perf_counter()


def write_settings(folder: Path, config: Any, arguments: Any, spec: dict[str, Any]) -> None:
    from importlib.metadata import version

    from omegaconf import OmegaConf

    content = {
        "seed": config.seed,
        "objective": {"name": "grpo", "kl_coef": spec["beta"]},
        "optimizer": {"learning_rate": spec["rate"]},
        "rollout": {"batch_size": config.rollout.batch_size, "responses_per_prompt": arguments.num_generations},
        "trl": {"version": version("trl"), **{name: plain(getattr(arguments, name)) for name in KEPT}},
    }
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)), "utf-8")
    words = [f"config={spec['name']}", f"seed={config.seed}"]
    (folder / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(words)), "utf-8")


def plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


if __name__ == "__main__":
    main()
