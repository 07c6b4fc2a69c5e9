"""The configuration: one dataclass per YAML group, here and in the schema_… beside. Imports no torch.

Every field says its unit in `help`; `checks.check_config` applies the limits and the rules that span fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Optional

from apa_cli.config.fields import choice, number, plain, required
from apa_cli.config.objectives import method_of
from apa_cli.config.schema_models import AdapterConfig, PolicyConfig, ReferenceConfig, ValueConfig
from apa_cli.config.schema_objective import AdvantageConfig, ObjectiveConfig
from apa_cli.config.schema_rewards import (
    ComponentConfig,
    EvaluatorConfig,
    JudgeConfig,
    RewardConfig,
    ScorerConfig,
    SeveralConfig,
)
from apa_cli.config.schema_rollouts import DataConfig, GenerationConfig, RolloutConfig

__all__ = [
    "AdapterConfig",
    "AdvantageConfig",
    "CheckpointConfig",
    "ComponentConfig",
    "DataConfig",
    "EvaluationConfig",
    "EvaluatorConfig",
    "GenerationConfig",
    "JudgeConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PolicyConfig",
    "ReferenceConfig",
    "RewardConfig",
    "RolloutConfig",
    "ScorerConfig",
    "SeveralConfig",
    "StopIfConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainingConfig",
    "ValueConfig",
    "WandbConfig",
]


@dataclass(kw_only=True)
class StopIfConfig:
    """Limits at which a run saves, evaluates and ends by itself."""

    kl_above: Optional[float] = number(
        None, "end the run if KL exceeds this, in nats per response; null = off", above=0
    )
    entropy_below: Optional[float] = number(
        None, "end the run if entropy falls below this, in nats per token; null = off", above=0
    )
    reward_below: Optional[float] = number(None, "end the run if the mean reward falls below this; null = off")
    patience: int = number(3, "consecutive iterations beyond a limit before the run ends", minimum=1)


@dataclass(kw_only=True)
class TrainingConfig:
    iterations: int = number(100, "number of iterations, each a rollout and its update", minimum=1)
    epochs_per_rollout: int = number(2, "passes over each rollout", minimum=1)
    minibatch_size: int = number(16, "responses per optimizer step", minimum=1)
    shuffle: str = choice(
        "groups",
        "what is shuffled into minibatches: all responses to a prompt as one, where minibatch_size is a multiple of "
        "rollout.responses_per_prompt, which saves computing their prompt anew; or each response",
        choices=("groups", "responses"),
    )
    microbatch_tokens: int = number(
        16_384, "tokens, including padding, per forward and backward pass; changes memory, not the gradient", minimum=1
    )
    compile: bool = plain(
        False, "torch.compile the transformers in the update; takes a minute or more at the start, same gradient"
    )
    max_skipped: int = number(
        10,
        "consecutive minibatches with non-finite numbers after which the run saves and stops",
        minimum=1,
    )
    stop_if: StopIfConfig = field(default_factory=StopIfConfig)


@dataclass(kw_only=True)
class OptimizerConfig:
    name: str = choice(
        "adamw",
        "AdamW with states in the weights' dtype, or in 8 bits through bitsandbytes (apa-cli[8bit])",
        choices=("adamw", "adamw_8bit"),
    )
    learning_rate: float = number(1e-6, "learning rate of the policy", above=0)
    value_learning_rate: Optional[float] = number(None, "learning rate of the critic; null = learning_rate", above=0)
    betas: list[float] = plain([0.9, 0.95], "AdamW's decay rates")
    eps: float = number(1e-8, "AdamW's ε", above=0)
    weight_decay: float = number(1e-6, "decoupled weight decay", minimum=0)
    max_grad_norm: float = number(1.0, "limit on the gradient norm, applied to policy and critic separately", above=0)
    schedule: str = choice("constant", "learning rate after the warm-up", choices=("constant", "linear", "cosine"))
    warmup_iterations: int = number(0, "iterations over which the learning rate rises to its value", minimum=0)


@dataclass(kw_only=True)
class CheckpointConfig:
    every: int = number(50, "iterations between checkpoints; 0 = only at the end", minimum=0)
    keep: int = number(2, "number of newest checkpoints to keep; 0 = all", minimum=0)
    grace_seconds: float = number(25.0, "time to save and exit after a signal, in seconds", above=0)
    best_metric: Optional[str] = plain(
        None, "also keep the checkpoint with the best value of this metric, such as eval/evaluator; null = off"
    )
    best_mode: str = choice("max", "whether a higher or a lower best_metric is better", choices=("max", "min"))
    final_dtype: str = choice(
        "trained",
        "weights in final/: as trained, or rounded to the dtype of policy.path (source), to bf16 or to fp16",
        choices=("trained", "source", "bf16", "fp16"),
    )


@dataclass(kw_only=True)
class EvaluationConfig:
    every: int = number(
        20, "iterations between evaluations on held-out prompts; 0 = only before and after training", minimum=0
    )
    prompts: int = number(64, "number of held-out prompts; 0 = no evaluation", minimum=0)
    decoding: str = choice("sampled", "how the evaluated responses are generated", choices=("sampled", "greedy"))
    resamples: int = number(1000, "bootstrap resamples for each 95 % interval", minimum=1)
    reward: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass(kw_only=True)
class WandbConfig:
    mode: str = choice(
        "auto",
        "auto = online if a key is configured, otherwise offline in the run's folder",
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str = plain("apa-cli", "wandb project")
    entity: Optional[str] = plain(None, "wandb team or user")
    group: Optional[str] = plain(None, "wandb group")
    name: Optional[str] = plain(None, "wandb run name; null = the run's folder")
    tags: list[str] = plain([], "wandb tags")


@dataclass(kw_only=True)
class TrackingConfig:
    samples: int = number(4, "responses per iteration written to samples.jsonl", minimum=0)
    console: str = choice(
        "auto",
        "terminal output: a live table, plain lines, or warnings only; auto = live in a terminal",
        choices=("auto", "live", "plain", "quiet"),
    )
    tensorboard: bool = plain(False, "also write TensorBoard event files to the run's folder (apa-cli[tensorboard])")
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass(kw_only=True)
class TrainConfig:
    """What one run of apa-train is."""

    seed: int = number(0, "seed of all random numbers", minimum=0, maximum=2**32 - 1)
    device: str = choice("auto", "auto = cuda if available", choices=("auto", "cpu", "cuda"))
    precision: str = choice(
        "fp32", "bf16 = frozen weights and arithmetic in bf16, trained weights in fp32", choices=("fp32", "bf16")
    )
    output_dir: str = required("the run's folder (for a sweep: the folder of its runs)")
    resume: Optional[str] = plain(
        None, "resume a run: auto = the one in output_dir, if there is one; DIR = a run or one of its checkpoints"
    )
    resume_allow_changes: bool = plain(
        False, "resume even if keys that change the numbers, or the files and rows behind them, differ from the run's"
    )
    plan_only: bool = plain(
        False, "print each model's size, the memory needed and the first prompt as each model reads it, then stop"
    )
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def method(self) -> str:
        """Name of the choice `objective=…` whose loss this is: apa, gvpo, grpo, …"""
        parts = (("objective", self.objective), ("advantage", self.advantage))
        return method_of({f"{group}.{key}": value for group, part in parts for key, value in vars(part).items()})

    @property
    def shuffled_together(self) -> int:
        """How many responses that stand side by side are shuffled into minibatches as one."""
        k = self.rollout.responses_per_prompt
        return k if self.training.shuffle == "groups" and self.training.minibatch_size % k == 0 else 1

    @property
    def needs_reward(self) -> bool:
        """Whether anything asks for the reward's scores: training, unless they are logged, or evaluation."""
        return self.data.score_column is None or self.evaluation.prompts > 0

    def rewards(self) -> Iterator[tuple[str, str, SeveralConfig]]:
        """Role, key and settings of the reward and of the evaluator, if each is used."""
        if self.needs_reward:
            yield "reward", "reward", self.reward
        if self.evaluation.reward.given:
            yield "evaluator", "evaluation.reward", self.evaluation.reward

    def scorers(self) -> Iterator[tuple[str, str, ScorerConfig]]:
        """`rewards`, with each component in place of a weighted sum."""
        for role, key, reward in self.rewards():
            if not reward.components:
                yield role, key, reward
            for name, part in reward.components.items():
                yield f"{role}.{name}", f"{key}.components.{name}", part
