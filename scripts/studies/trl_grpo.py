"""TRL's GRPO on a recipe's task, a process a run: `python -m studies.trl_grpo RECIPE.yaml SEED`.

A run leaves config.yaml, overrides.yaml, metrics.jsonl and summary.json in the form that one of apa-train does. The
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

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
import trl
import yaml
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from apa_cli.assets.resolve import resolve_path
from apa_cli.config.compose import compose_train
from apa_cli.config.schema import TrainConfig
from apa_cli.data.loading import load_prompts
from apa_cli.data.prompts import Prompt, PromptStream
from apa_cli.evaluation.judge import evaluate
from apa_cli.models.device import select_runtime
from apa_cli.models.roles import load_models
from apa_cli.rewards.record import FinishedResponses
from apa_cli.rewards.scorers import load_scorers
from apa_cli.training.run import seed_everything


class Recorder(TrainerCallback):
    """Writes a row an iteration: mean reward, seconds, and at the interval the evaluation. It is the reward, too."""

    initial: Any = None
    mean = seconds = cpu = wall = 0.0
    __name__ = "reward"  # TRL asks a reward for it

    def __init__(self, config: TrainConfig, folder: Path, *, steps: int) -> None:
        runtime = select_runtime(config.device, config.precision)
        self.config, self.folder, self.steps = config, folder, steps
        self.models = load_models(config, runtime)
        self.policy = self.models.policy
        self.scorers = load_scorers(config, self.policy, runtime)
        count = config.evaluation.prompts
        tokenizer = self.policy.tokenizer
        self.train, self.held_out = load_prompts(config.data, tokenizer, evaluation_prompts=count, seed=config.seed)
        self.known = {json.dumps(as_trl(prompt)): prompt for prompt in self.train.prompts}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.write({"iteration": 0, **self.judge()})
        seed_everything(self.config.seed)

    def on_step_end(self, arguments: Any, state: Any, control: Any, **__: Any) -> None:
        if state.global_step % self.steps:
            return
        iteration = state.global_step // self.steps
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        self.seconds += wall
        row = {"iteration": iteration, "reward/mean": self.mean, "time/cpu": cpu, "time/iteration": wall}
        if iteration % self.config.evaluation.every == 0 or iteration == self.config.training.iterations:
            row |= self.judge()
        self.write(row)

    def judge(self) -> dict[str, float]:
        self.policy.model.eval()
        opponents = self.initial and self.initial.opponents
        judged = evaluate(self.models, self.scorers, self.held_out.prompts, self.config, opponents)
        self.policy.model.train()
        self.initial = self.initial or judged
        return judged.metrics

    def write(self, row: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.cpu, self.wall = time.process_time(), time.perf_counter()  # an iteration begins

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        """The reward as apa-train reads it: the sampled tokens, the end of text among them.

        TRL's own way with a reward model, the decoded completion, drops that token, at which the built-in model was
        trained to give its score.
        """
        rows = [self.known[json.dumps(prompt)] for prompt in prompts]
        finished = FinishedResponses(
            prompts=[row.text for row in rows],
            responses=[each if isinstance(each, str) else each[0]["content"] for each in completions],
            messages=[[dict(m) for m in row.messages or ()] for row in rows] if self.train.chat else None,
            columns={name: [row.columns.get(name) for row in rows] for name in rows[0].columns},
            token_ids=[[*row.token_ids, *rest] for row, rest in zip(rows, completion_ids, strict=True)],
        )
        scores: list[float] = self.scorers.reward(finished)
        self.mean = statistics.fmean(scores)
        return scores


def as_trl(prompt: Prompt) -> Any:
    """A text or the messages of a chat, to which TRL applies the policy's template."""
    return prompt.text if prompt.messages is None else [dict(message) for message in prompt.messages]


def main() -> None:
    """What the recipe says of task, models, prompts and sizes; everything else is TRL's default."""
    recipe, seed = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = compose_train([f"config={recipe}", f"seed={seed}"])
    training, rollout, optimizer = config.training, config.rollout, config.optimizer
    minibatches = rollout.batch_size // training.minibatch_size
    steps = minibatches * training.epochs_per_rollout  # of the optimizer, an iteration
    recorder = Recorder(config, recipe.parent, steps=steps)
    pad = recorder.policy.pad_token_id
    stream = PromptStream(recorder.train.prompts, batch_size=rollout.prompts, seed=seed, pad_token_id=pad)
    drawn = [index for _ in range(training.iterations) for index in next(stream).indices]
    prompts = [as_trl(recorder.train.prompts[index]) for index in drawn]
    arguments = GRPOConfig(
        output_dir=str(recipe.parent / "unused"), save_strategy="no", report_to="none", disable_tqdm=True, seed=seed,
        logging_steps=steps, use_cpu=not torch.cuda.is_available(), bf16=config.precision == "bf16",
        gradient_checkpointing=False, shuffle_dataset=False,
        learning_rate=optimizer.learning_rate, lr_scheduler_type="constant", adam_beta2=optimizer.betas[1],
        max_grad_norm=optimizer.max_grad_norm, beta=config.objective.kl_coef, max_steps=steps * training.iterations,
        per_device_train_batch_size=training.minibatch_size, gradient_accumulation_steps=1,
        steps_per_generation=minibatches, num_iterations=training.epochs_per_rollout, temperature=1.0,
        num_generations=rollout.responses_per_prompt, max_completion_length=config.generation.max_new_tokens,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=recorder.policy.model.train(),
        reward_funcs=recorder,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(resolve_path(config.policy.path), padding_side="left"),
        callbacks=[recorder],
    )
    content = {
        "seed": seed,
        "objective": {"name": "grpo", "kl_coef": config.objective.kl_coef},
        "optimizer": {"learning_rate": optimizer.learning_rate},
        "rollout": {"batch_size": rollout.batch_size, "responses_per_prompt": rollout.responses_per_prompt},
        "trl": {"version": trl.__version__, **json.loads(arguments.to_json_string())},
    }
    words = [f"config={recipe.stem}", f"seed={seed}"]
    for name, noted in (("config", content), ("overrides", words)):
        (recipe.parent / f"{name}.yaml").write_text(yaml.safe_dump(noted), "utf-8")
    trainer.train()
    summary = {"iterations": training.iterations, "seconds": recorder.seconds}
    (recipe.parent / "summary.json").write_text(json.dumps(summary) + "\n", "utf-8")


if __name__ == "__main__":
    main()
