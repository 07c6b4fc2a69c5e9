"""The configuration: one dataclass per YAML group. Imports no torch.

Every field says its unit in `help`; `checks.check_config` applies the limits and the rules that span fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from apa_cli.config.fields import choice, items, mapping, number, required, switch, text

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(kw_only=True)
class AdapterConfig:
    r: int = number(0, "LoRA rank; 0 trains all weights", minimum=0)
    alpha: float = number(16.0, "LoRA scale: the update is multiplied by alpha / r", above=0)
    dropout: float = number(0.0, "dropout inside the adapter, active in the update only", minimum=0, below=1)
    target_modules: Optional[list[str]] = items(None, "layers to adapt, by name; null = peft's choice for the model")
    path: Optional[str] = text(None, "start from this trained PEFT adapter, which is then the reference too")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of policy.adapter.path")

    @property
    def enabled(self) -> bool:
        return self.r > 0 or self.path is not None


@dataclass(kw_only=True)
class PolicyConfig:
    path: str = required("model to align: local folder, Hub id, or builtin:reviews/policy")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of policy.path")
    dtype: str = choice(
        "auto",
        "policy's and critic's weights: auto = trained fp32, frozen as precision says; bf16 = Adam's states too",
        choices=("auto", "fp32", "bf16"),
    )
    gradient_checkpointing: bool = switch(False, "recompute activations in backward: less memory, about a third slower")
    attn_implementation: Optional[str] = choice(
        None, "attention kernel; null = the library's choice for this model", choices=ATTENTION
    )
    trust_remote_code: bool = switch(False, "run Python code that the model's repository carries")
    adapter: AdapterConfig = field(default_factory=AdapterConfig)


@dataclass(kw_only=True)
class ReferenceConfig:
    path: Optional[str] = text(None, "frozen model that KL is measured from; null = the policy as it starts")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of reference.path")


@dataclass(kw_only=True)
class ScorerConfig:
    """One reward."""

    kind: str = choice(
        "model",
        "a sequence-classification model, a Python function, or a reward served over HTTP",
        choices=("model", "function", "http"),
    )
    path: Optional[str] = text(None, "reward model: local folder, Hub id, or builtin:reviews/reward")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of the reward model")
    function: Optional[str] = text(None, "reward function: package.module:name or path/to/file.py:name")
    url: Optional[str] = text(None, "http: what takes prompts and responses and answers scores: http://HOST:PORT/PATH")
    api_key_env: Optional[str] = text(
        None, "http: environment variable with a bearer token (not the token itself); null = none is sent"
    )
    batch_size: int = number(64, "http: responses a request", minimum=1)
    concurrency: int = number(2, "http: requests at a time", minimum=1, maximum=64)
    retries: int = number(8, "http: further tries after 429, 5xx or a lost connection", minimum=0, maximum=20)
    timeout_seconds: Optional[float] = number(
        1800.0,
        "longest wait for a call of the reward function, or for an answer over HTTP with all tries, seconds; "
        "null = for ever, the function in the main thread",
        above=0,
    )
    label: Optional[int] = number(None, "which output is the score, for a model with several", minimum=0)
    format: str = choice(
        "auto",
        "what it reads: chat (its own template), policy (the policy's very text, template and all), "
        "text (prompt + response), pair (two segments); auto = chat if it has a template",
        choices=("auto", "text", "pair", "chat", "policy"),
    )
    max_tokens: Optional[int] = number(None, "longest text scored, cut on the left; null = the model's own", minimum=1)

    @property
    def source(self) -> str:
        """What makes the scores, for people."""
        return {"function": self.function, "http": self.url}.get(self.kind, self.path) or "nothing"


@dataclass(kw_only=True)
class ComponentConfig(ScorerConfig):
    """One of several rewards."""

    weight: float = number(1.0, "what its score is multiplied by; not 0")


@dataclass(kw_only=True)
class SeveralConfig(ScorerConfig):
    """One reward, or the weighted sum of several."""

    components: dict[str, ComponentConfig] = mapping(
        {},
        "several rewards in place of one, by name: weight (1), and kind, path, function, url … as above, of each",
    )

    @property
    def source(self) -> str:
        if not self.components:
            return super().source
        return " + ".join(f"{part.weight:g} × {name} ({part.source})" for name, part in self.components.items())


@dataclass(kw_only=True)
class RewardConfig(SeveralConfig):
    length_penalty: float = number(0.0, "taken from the score for each token beyond length_target; 0 = off", minimum=0)
    length_target: Optional[int] = number(None, "longest response that costs nothing, tokens", minimum=0)


@dataclass(kw_only=True)
class EvaluatorConfig(SeveralConfig):
    """A second reward that judges and never trains."""

    kind: str = choice(
        "none",
        "separate evaluator that training never sees: a model, a function, or served over HTTP",
        choices=("none", "model", "function", "http"),
    )

    @property
    def given(self) -> bool:
        return self.kind != "none" or bool(self.components)


@dataclass(kw_only=True)
class JudgeConfig:
    """A chat endpoint that compares a checkpoint's responses with the initial policy's. It never trains."""

    base_url: Optional[str] = text(
        None, "OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; null = no judge"
    )
    model: Optional[str] = text(None, "name of the judging model at that endpoint")
    api_key_env: str = text(
        "OPENAI_API_KEY",
        "environment variable that holds the key (not the key itself); may be unset for a local server",
    )
    criterion: str = text(
        "The better response serves the prompt better: it is helpful, correct, harmless and well written. "
        "Being longer is no merit by itself.",
        "what better means, in the words that the judge is told",
    )
    prompts: int = number(0, "how many of the evaluation prompts are judged, the first ones; 0 = all", minimum=0)
    temperature: Optional[float] = number(0.0, "the judge's sampling temperature; null = not sent", minimum=0)
    seed: Optional[int] = number(0, "the judge's sampling seed, where the server heeds it; null = not sent", minimum=0)
    max_answer_tokens: Optional[int] = number(
        1024, "longest answer, tokens, a reasoning model's thoughts included; null = not sent", minimum=1
    )
    timeout_seconds: float = number(60.0, "longest wait for the server, seconds, each try", above=0)
    retries: int = number(4, "further tries after 429, 5xx, a timeout or a lost connection", minimum=0, maximum=20)
    concurrency: int = number(4, "requests at a time", minimum=1, maximum=256)
    max_tokens_total: Optional[int] = number(
        None, "cost cap: stop before this many tokens, as the server counts them; null = none", minimum=1
    )
    max_cost: Optional[float] = number(None, "cost cap, in the currency of the prices; null = none", above=0)
    price_per_million_input: Optional[float] = number(None, "price of a million tokens read", minimum=0)
    price_per_million_output: Optional[float] = number(None, "price of a million tokens written", minimum=0)


@dataclass(kw_only=True)
class ValueConfig:
    kind: str = choice(
        "separate",
        "critic: its own network, a head on the policy's trunk, its own adapter on the policy's base, or no critic",
        choices=("separate", "shared", "adapter", "none"),
    )
    path: Optional[str] = text(None, "where a separate critic starts, may be a reward model; null = from the policy")
    revision: Optional[str] = text(None, "Hub branch, tag or commit of value.path")
    warmup_iterations: int = number(0, "first iterations, in which the critic alone learns", minimum=0)
    keep: bool = switch(False, "write the trained critic to final/value/ too")


@dataclass(kw_only=True)
class DataConfig:
    path: str = required("prompts: .jsonl .json .csv .tsv .parquet .txt (also .gz), a Hub id, or builtin:…")
    revision: Optional[str] = text(
        None, "Hub branch, tag or commit of data.path, and of data.eval_path where it is the same data set"
    )
    subset: Optional[str] = text(None, "Hub data set's configuration name")
    split: str = text("train", "split of a Hub data set")
    prompt_column: str = text(
        "prompt",
        "column with the prompt (format text) or the messages (format chat; messages and conversations are found too)",
    )
    format: str = choice(
        "auto",
        "text, chat (messages through the policy's template), hh (prompt = up to the last Assistant:) or hh_chat "
        "(its turns as messages); auto looks at the rows",
        choices=("auto", "text", "chat", "hh", "hh_chat"),
    )
    system_prompt: Optional[str] = text(None, "chat: system message of dialogues that have none; null = none")
    template_arguments: dict[str, Any] = mapping(
        {}, "chat: further arguments of the policy's template, such as {enable_thinking: false}; null = not given"
    )
    response_column: Optional[str] = text(
        None,
        "offline: column with the response; null = chosen and rejected where there are both, otherwise response, "
        "otherwise the answer that a row's messages end with",
    )
    score_column: Optional[str] = text(
        None, "offline: column with the response's score (of pairs: NAME_chosen, NAME_rejected); null = the reward's"
    )
    max_prompt_tokens: int = number(512, "longest prompt, tokens", minimum=1)
    overlong: str = choice(
        "cut",
        "longer prompts are cut on the left (chat: the oldest turns are left out whole), or dropped",
        choices=("cut", "drop"),
    )
    eval_path: Optional[str] = text(None, "held-out prompts; null = evaluation.prompts rows set aside from data.path")
    eval_split: str = text("test", "split of data.eval_path when that is a Hub data set")

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `template_arguments` that are given."""
        return {name: value for name, value in self.template_arguments.items() if value is not None}


@dataclass(kw_only=True)
class GenerationConfig:
    max_new_tokens: int = number(128, "longest response, tokens", minimum=1)
    min_new_tokens: int = number(0, "no end of text before this many tokens", minimum=0)
    temperature: float = number(1.0, "sampling temperature; log-probs are taken at the same one", above=0)
    top_k: int = number(0, "sample among the k likeliest tokens; 0 = all", minimum=0)
    top_p: float = number(1.0, "sample within this probability mass; 1 = all", above=0, maximum=1)
    stop: list[str] = items([], "strings that end a response; the response counts up to and including them")
    stop_tokens: list[str] = items([], "tokens that end a response, besides EOS and the template's end of turn")
    backend: str = choice(
        "hf",
        "what runs the policy to sample: hf = a growing cache; static = a cache of fixed size, CUDA graphs on a GPU; "
        "paged = transformers' continuous batching; vllm = vLLM in this process",
        choices=("hf", "static", "paged", "vllm"),
    )
    rows: Optional[int] = number(
        None,
        "hf: responses decoded at once, which bounds the KV cache; same tokens; null = 64 on a CPU, all on a GPU",
        minimum=1,
    )
    gpu_memory_fraction: float = number(
        0.4, "vllm: share of the GPU that vLLM may fill while it samples", above=0, below=1
    )


@dataclass(kw_only=True)
class ObjectiveConfig:
    name: str = choice("apa", "policy objective", choices=("apa", "awr", "ppo"))
    kl_lambda: float = number(
        0.3,
        "apa, awr: the KL knob, in whitened advantages; smaller moves further (the first value if steered)",
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
    def lambda_floor(self) -> float:
        """Of a steered λ. AWR weights by exp(A/λ): far above 0.05, one token of a minibatch outweighs the rest."""
        return self.kl_lambda_min if self.kl_lambda_min is not None else 0.05 if self.name == "apa" else 1.0


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
class RolloutConfig:
    source: str = choice(
        "online",
        "responses sampled from the policy, or offline: logged ones, of data.path (response, or chosen and rejected)",
        choices=("online", "offline"),
    )
    reference_cache: Optional[str] = text(
        None, "offline: folder that keeps reference log-probs; null = apa-cli in the user's cache folder"
    )
    batch_size: int = number(64, "responses an iteration", minimum=1)
    responses_per_prompt: int = number(1, "responses to each prompt; batch_size is a multiple of it", minimum=1)

    @property
    def prompts(self) -> int:
        """Prompts an iteration."""
        return self.batch_size // self.responses_per_prompt

    @property
    def offline(self) -> bool:
        return self.source == "offline"


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
        10, "minibatches with numbers that are not finite, skipped in a row, before the run saves and stops", minimum=1
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
    grace_seconds: float = number(25.0, "time to save and end after SIGTERM or SIGINT, seconds", above=0)
    best_metric: Optional[str] = text(
        None, "also keep the checkpoint that is best by this, such as eval/evaluator; null = off"
    )
    best_mode: str = choice("max", "whether more or less of best_metric is better", choices=("max", "min"))


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
    resume_allow_changes: bool = switch(False, "resume although keys that change the numbers differ from the run's")
    plan_only: bool = switch(False, "print each model's size and the memory it all needs, load nothing, and stop")
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
