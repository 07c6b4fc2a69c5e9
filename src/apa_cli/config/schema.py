"""The configuration: one dataclass per YAML group, here and in the schema_… beside. Imports no torch.

Every field says its unit in `help`; `checks.check_config` applies the limits and the rules that span fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

from apa_cli.config.fields import choice, items, number, required, switch, text
from apa_cli.config.objectives import objectives
from apa_cli.config.schema_models import AdapterConfig, PolicyConfig, ReferenceConfig, ValueConfig
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
class ObjectiveConfig:
    name: str = choice("apa", "policy objective", choices=tuple(objectives()))
    kl_lambda: Optional[float] = number(
        None,
        "apa, awr: the KL knob, in whitened advantages; smaller moves further (the first value if steered); "
        "null = 0.3 for apa, 2 for awr",
        above=0,
    )
    target_bound: Optional[float] = number(
        None, "apa: the log-ratio asked of a token, advantage / λ, is clipped to ± this, nats; null = off", above=0
    )
    huber_delta: Optional[float] = number(
        None, "apa: beyond this distance from its target, nats, a token's error counts linearly; null = off", above=0
    )
    clip_range: float = number(0.2, "ppo: the ratio is clipped to 1 ± this", above=0, below=1)
    value_clip_range: Optional[float] = number(0.2, "ppo: value clipped around the rollout's; null = off", above=0)
    kl_coef: float = number(0.05, "ppo: β of the KL-shaped reward (the first value if adaptive)", minimum=0)
    kl_target: Optional[float] = number(
        None, "KL that λ (apa, awr) or β (ppo) is steered to, nats a response; null = the knob stays as it is", above=0
    )
    kl_lambda_min: Optional[float] = number(
        None, "apa, awr: a steered λ goes no lower; null = 0.05 for apa, 1 for awr", above=0
    )
    kl_lambda_max: float = number(20.0, "apa, awr: a steered λ goes no higher", above=0)
    kl_gain: float = number(
        0.3,
        "apa, awr: a steered λ is multiplied by exp of this an iteration, at e times the target",
        above=0,
        maximum=1,
    )
    kl_damping: float = number(
        1.5, "apa, awr: a steered λ answers a change of log KL by this power; 0 swings about the target", minimum=0
    )
    kl_horizon: int = number(10_000, "ppo: responses over which β adapts", minimum=1)
    value_coef: float = number(1.0, "weight of the value loss", minimum=0)
    missing_eos_penalty: Optional[float] = number(
        None, "subtracted from the score of a response cut at max_new_tokens; null = off", minimum=0
    )
    score_scaling: str = choice("running", "divide scores by their running deviation", choices=("none", "running"))
    score_clip: Optional[float] = number(100.0, "scaled scores are clipped at ± this; null = off", above=0)

    @property
    def resolved(self) -> dict[str, Any]:
        """Keys that are null, at the objective's own default."""
        defaults = objectives()[self.name].defaults
        return {key: value for key, value in defaults.items() if getattr(self, key) is None}

    @property
    def knob(self) -> tuple[str, float]:
        """Symbol and value of the KL knob, the first value where it is steered."""
        facts = objectives()[self.name]
        return facts.symbol, {**vars(self), **self.resolved}[facts.knob]


@dataclass(kw_only=True)
class AdvantageConfig:
    name: str = choice(
        "gae", "from the critic, token by token, or from the other responses to the prompt", choices=("gae", "group")
    )
    gamma: float = number(1.0, "gae: discount", above=0, maximum=1)
    gae_lambda: float = number(0.95, "GAE's λ: 0 trusts the critic, 1 the returns", minimum=0, maximum=1)
    group_scale: bool = switch(False, "group: divide by the deviation of the prompt's scores, as GRPO does")
    whiten: bool = switch(True, "give the objective advantages of deviation 1 over the rollout, and for gae of mean 0")


@dataclass(kw_only=True)
class StopIfConfig:
    """Limits at which a run saves, evaluates and ends by itself."""

    kl_above: Optional[float] = number(None, "end the run at more KL than this, nats a response; null = off", above=0)
    entropy_below: Optional[float] = number(
        None, "end the run at less entropy than this, nats a token; null = off", above=0
    )
    reward_below: Optional[float] = number(None, "end the run at a mean reward below this; null = off")
    patience: int = number(3, "iterations in a row that must be beyond such a limit", minimum=1)


@dataclass(kw_only=True)
class TrainingConfig:
    iterations: int = number(100, "rollouts and updates", minimum=1)
    epochs_per_rollout: int = number(2, "passes over each rollout", minimum=1)
    minibatch_size: int = number(16, "responses an optimizer step", minimum=1)
    microbatch_tokens: int = number(
        16_384, "tokens (padding included) in one forward and backward; memory only, same gradient", minimum=1
    )
    compile: bool = switch(
        False, "torch.compile of the update's transformers; takes a minute or more at the start, same gradient"
    )
    max_skipped: int = number(
        10,
        "minibatches skipped in a row, as numbers of the models are not finite, before the run saves and stops",
        minimum=1,
    )
    stop_if: StopIfConfig = field(default_factory=StopIfConfig)


@dataclass(kw_only=True)
class OptimizerConfig:
    name: str = choice(
        "adamw",
        "AdamW with states in the weights' dtype, or in 8 bits through bitsandbytes: apa-cli[8bit]",
        choices=("adamw", "adamw_8bit"),
    )
    learning_rate: float = number(1e-6, "AdamW, policy", above=0)
    value_learning_rate: Optional[float] = number(None, "AdamW, critic; null = learning_rate", above=0)
    betas: list[float] = items([0.9, 0.95], "AdamW's two decay rates")
    eps: float = number(1e-8, "AdamW's ε", above=0)
    weight_decay: float = number(1e-6, "decoupled weight decay", minimum=0)
    max_grad_norm: float = number(1.0, "gradient norm clip, policy and critic apart", above=0)
    schedule: str = choice("constant", "learning rate after warm-up", choices=("constant", "linear", "cosine"))
    warmup_iterations: int = number(0, "iterations over which the learning rate rises to its value", minimum=0)


@dataclass(kw_only=True)
class CheckpointConfig:
    every: int = number(50, "iterations between checkpoints; 0 = only at the end", minimum=0)
    keep: int = number(2, "how many of the newest to keep; 0 = all", minimum=0)
    grace_seconds: float = number(25.0, "time to save and end after a signal, seconds", above=0)
    best_metric: Optional[str] = text(
        None, "also keep the checkpoint that is best by this, such as eval/evaluator; null = off"
    )
    best_mode: str = choice("max", "whether more or less of best_metric is better", choices=("max", "min"))
    final_dtype: str = choice(
        "trained",
        "weights in final/: as they were trained, or rounded to what policy.path is in (source), bf16 or fp16",
        choices=("trained", "source", "bf16", "fp16"),
    )


@dataclass(kw_only=True)
class EvaluationConfig:
    every: int = number(20, "iterations between evaluations on held-out prompts; 0 = before and after only", minimum=0)
    prompts: int = number(64, "held-out prompts; 0 = no evaluation", minimum=0)
    decoding: str = choice("sampled", "how the judged responses are drawn", choices=("sampled", "greedy"))
    resamples: int = number(1000, "bootstrap resamples behind each 95 % interval", minimum=1)
    reward: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass(kw_only=True)
class WandbConfig:
    mode: str = choice(
        "auto",
        "auto = online when a key is configured, otherwise offline in the run's folder",
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str = text("apa-cli", "wandb project")
    entity: Optional[str] = text(None, "wandb team or user")
    group: Optional[str] = text(None, "wandb group")
    name: Optional[str] = text(None, "wandb run name; null = the run's folder")
    tags: list[str] = items([], "wandb tags")


@dataclass(kw_only=True)
class TrackingConfig:
    samples: int = number(4, "responses an iteration that go to samples.jsonl", minimum=0)
    console: str = choice(
        "auto",
        "live table, plain lines, or only warnings (auto = live in a terminal)",
        choices=("auto", "live", "plain", "quiet"),
    )
    tensorboard: bool = switch(False, "also write TensorBoard's files into the run's folder: apa-cli[tensorboard]")
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass(kw_only=True)
class TrainConfig:
    """What one run of apa-train is."""

    seed: int = number(0, "seed of everything random", minimum=0, maximum=2**32 - 1)
    device: str = choice("auto", "auto = cuda where there is one", choices=("auto", "cpu", "cuda"))
    precision: str = choice(
        "fp32", "bf16 = frozen weights and arithmetic in bf16, trained weights in fp32", choices=("fp32", "bf16")
    )
    output_dir: str = required("the run's folder (of a sweep: the folder of its runs)")
    resume: Optional[str] = text(
        None, "go on with a run: auto = with output_dir's, where there is one; DIR = a run or one of its checkpoints"
    )
    resume_allow_changes: bool = switch(
        False, "resume although keys that change the numbers, or the files and rows behind them, differ from the run's"
    )
    plan_only: bool = switch(
        False, "print each model's size, the memory it all needs and the first prompt as each reads it, and stop"
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
    def needs_reward(self) -> bool:
        """Whether anything asks for the reward's scores: training, unless they are logged, or evaluation."""
        return self.data.score_column is None or self.evaluation.prompts > 0

    def scorers(self) -> Iterator[tuple[str, str, ScorerConfig]]:
        """Role, key and settings of every reward and evaluator that is asked; of a weighted sum, of each component."""
        several: list[tuple[str, str, SeveralConfig]] = []
        if self.needs_reward:
            several.append(("reward", "reward", self.reward))
        if self.evaluation.reward.given:
            several.append(("evaluator", "evaluation.reward", self.evaluation.reward))
        for role, key, reward in several:
            if not reward.components:
                yield role, key, reward
            for name, part in reward.components.items():
                yield f"{role}.{name}", f"{key}.components.{name}", part
