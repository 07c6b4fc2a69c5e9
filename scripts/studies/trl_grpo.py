"""TRL's GRPO on the built-in task, a process a run: `python -m studies.trl_grpo RECIPE.yaml SEED`.

A run leaves config.yaml, overrides.yaml, metrics.jsonl and summary.json in the form that one of apa-train does. The
policy that TRL trains is judged by apa-train's own evaluation, on the same held-out prompts, between iterations and
outside the timed part.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.runs import Setting, Size


def make(work: Sequence[tuple[Setting, int]], size: Size, output: Path, *, jobs: int) -> None:
    """Run what is missing of the settings, each with its seed. A run that fails is left to the page."""
    import apa_cli
    from apa_cli.runs.folders import is_finished

    places = (Path(__file__).parents[1], Path(apa_cli.__file__).parents[1], os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(str(place) for place in places if place)
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}

    def run(job: tuple[Setting, int]) -> str:
        setting, seed = job
        folder = (output / f"config={setting.name},seed={seed}").absolute()
        if is_finished(folder):
            return f"{folder.name}: finished before"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        recipe = folder / f"{setting.name}.yaml"
        recipe.write_text(setting.content(size), "utf-8")
        with (folder / "run.log").open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", "studies.trl_grpo", str(recipe), str(seed)]
            code = subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=folder).returncode
        return f"{folder.name}: {'finished' if is_finished(folder) else f'failed ({code}), see its run.log'}"

    with ThreadPoolExecutor(jobs) as pool:
        for line in pool.map(run, work):
            print(line, flush=True)


def main() -> None:
    recipe, seed = Path(sys.argv[1]), int(sys.argv[2])
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch

    torch.set_num_threads(1)
    from apa_cli.config.compose import compose_train

    train(compose_train([f"config={recipe}", f"seed={seed}"]), recipe)


def train(config: Any, recipe: Path) -> None:
    """What the recipe says of task, models, prompts and sizes; everything else is TRL's default."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from apa_cli.assets.resolve import resolve_path
    from apa_cli.data.loading import load_prompts
    from apa_cli.data.prompts import PromptStream
    from apa_cli.models.device import select_runtime
    from apa_cli.models.roles import load_models
    from apa_cli.rewards.scorers import load_scorers

    runtime = select_runtime("cpu", "fp32")
    models = load_models(config, runtime)
    folder, policy = recipe.parent, models.policy
    training, rollout, optimizer = config.training, config.rollout, config.optimizer
    scorers = load_scorers(config, policy, runtime)
    train, held_out = load_prompts(
        config.data, policy.tokenizer, evaluation_prompts=config.evaluation.prompts, seed=config.seed
    )
    stream = PromptStream(train.prompts, batch_size=rollout.prompts, seed=config.seed, pad_token_id=policy.pad_token_id)
    prompts = [text for _ in range(training.iterations) for text in next(stream).texts]
    minibatches = rollout.batch_size // training.minibatch_size
    steps = minibatches * training.epochs_per_rollout  # of the optimizer, an iteration
    arguments = GRPOConfig(
        output_dir=str(folder / "unused"), save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=steps,
        seed=config.seed, use_cpu=True, bf16=False, gradient_checkpointing=False, shuffle_dataset=False,
        learning_rate=optimizer.learning_rate, lr_scheduler_type="constant", adam_beta2=optimizer.betas[1],
        max_grad_norm=optimizer.max_grad_norm, beta=config.objective.kl_coef, max_steps=steps * training.iterations,
        per_device_train_batch_size=training.minibatch_size, gradient_accumulation_steps=1,
        steps_per_generation=minibatches, num_iterations=training.epochs_per_rollout, temperature=1.0,
        num_generations=rollout.responses_per_prompt, max_completion_length=config.generation.max_new_tokens,
    )  # fmt: skip
    recorder = recorder_of(config, models, scorers, held_out.prompts, folder, steps=steps)
    trainer = GRPOTrainer(
        model=policy.model.train(),
        reward_funcs=reward_of(policy.tokenizer, scorers.reward, recorder),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(resolve_path(config.policy.path), padding_side="left"),
        callbacks=[recorder],
    )
    write_settings(recipe, config, arguments)
    trainer.train()
    summary = {"iterations": training.iterations, "seconds": recorder.seconds}
    (folder / "summary.json").write_text(json.dumps(summary) + "\n", "utf-8")


def reward_of(tokenizer: Any, scorer: Any, recorder: Any) -> Any:
    """The reward as apa-train reads it: the sampled tokens, the end of text among them.

    TRL's own way with a reward model, the decoded completion, drops that token, at which the built-in model was trained
    to give its score.
    """
    from apa_cli.rewards.record import FinishedResponses

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        before = tokenizer(prompts)["input_ids"]
        tokens = [first + list(rest) for first, rest in zip(before, completion_ids, strict=True)]
        scores: list[float] = scorer(
            FinishedResponses(prompts=prompts, responses=completions, messages=None, columns={}, token_ids=tokens)
        )
        recorder.reward = statistics.fmean(scores)
        return scores

    return reward


def recorder_of(config: Any, models: Any, scorers: Any, held_out: Any, folder: Path, *, steps: int) -> Any:
    """A callback that writes a row an iteration: mean reward, seconds, and at the interval the evaluation."""
    from transformers import TrainerCallback

    from apa_cli.evaluation.judge import evaluate
    from apa_cli.training.run import seed_everything

    class Recorder(TrainerCallback):
        initial: Any = None
        reward = seconds = cpu = wall = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.write({"iteration": 0, **self.judge()})
            seed_everything(config.seed)

        def on_step_end(self, arguments: Any, state: Any, control: Any, **__: Any) -> None:
            if state.global_step % steps:
                return
            iteration = state.global_step // steps
            cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
            self.seconds += wall
            row = {"iteration": iteration, "reward/mean": self.reward, "time/cpu": cpu, "time/iteration": wall}
            if iteration % config.evaluation.every == 0 or iteration == config.training.iterations:
                row |= self.judge()
            self.write(row)

        def judge(self) -> dict[str, float]:
            models.policy.model.eval()
            judged = evaluate(models, scorers, held_out, config, self.initial and self.initial.opponents)
            models.policy.model.train()
            self.initial = self.initial or judged
            return judged.metrics

        def write(self, row: dict[str, Any]) -> None:
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.cpu, self.wall = time.process_time(), time.perf_counter()  # an iteration begins

    return Recorder()


def write_settings(recipe: Path, config: Any, arguments: Any) -> None:
    from importlib.metadata import version

    import yaml

    content = {
        "seed": config.seed,
        "objective": {"name": "grpo", "kl_coef": config.objective.kl_coef},
        "optimizer": {"learning_rate": config.optimizer.learning_rate},
        "rollout": {"batch_size": config.rollout.batch_size, "responses_per_prompt": arguments.num_generations},
        "trl": {"version": version("trl"), **json.loads(arguments.to_json_string())},
    }
    (recipe.parent / "config.yaml").write_text(yaml.safe_dump(content), "utf-8")
    words = [f"config={recipe.stem}", f"seed={config.seed}"]
    (recipe.parent / "overrides.yaml").write_text(yaml.safe_dump(words), "utf-8")


if __name__ == "__main__":
    main()
