"""The keys of what is learnt: objective and advantage. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from apa_cli.config.fields import choice, number, plain
from apa_cli.config.objectives import objectives


@dataclass(kw_only=True)
class ObjectiveConfig:
    name: str = choice("apa", "policy objective", choices=tuple(objectives()))
    kl_lambda: Optional[float] = number(
        None,
        "apa, awr: λ, the KL knob, in units of whitened advantages; smaller moves further (if steered: the initial "
        "value); null = 0.3 for apa, 2 for awr",
        above=0,
    )
    level: str = choice(
        "token",
        "apa, ppo: what is one action: a token, or a whole response (sequence), whose log-prob is its tokens' sum",
        choices=("token", "sequence"),
    )
    anchor: str = choice(
        "initial",
        "apa: whose log-probs the policy's are compared with: the initial policy's, or those of the rollout",
        choices=("initial", "rollout"),
    )
    target_bound: Optional[float] = number(
        None,
        "apa: limit on the log-ratios asked for, in nats: targets advantage / λ stay within ± this, clipped with a "
        "critic, in groups scaled by one factor for all responses to a prompt; null = off",
        above=0,
    )
    huber_delta: Optional[float] = number(
        None,
        "apa: distance from its target, in nats, beyond which a token's error counts linearly; null = off",
        above=0,
    )
    clip_range: float = number(0.2, "ppo, grpo: the ratio is clipped to 1 ± this", above=0, below=1)
    length_divisor: Optional[int] = number(
        None,
        "grpo: what the sum over a response's tokens is divided by, such as generation.max_new_tokens; null = its "
        "number of tokens",
        minimum=1,
    )
    value_clip_range: Optional[float] = number(
        0.2, "ppo: values are clipped to ± this around the rollout's values; null = off", above=0
    )
    kl_coef: float = number(
        0.05,
        "ppo: β, the coefficient of the KL-shaped reward (if adaptive: the initial value); grpo: of the KL in the loss",
        minimum=0,
    )
    kl_target: Optional[float] = number(
        None,
        "KL to which λ (apa, awr) or β (ppo) is steered, in nats per response; null = λ or β stays constant",
        above=0,
    )
    kl_lambda_min: Optional[float] = number(
        None, "apa, awr: lower limit of a steered λ; null = 0.05 for apa, 1 for awr", above=0
    )
    kl_lambda_max: float = number(20.0, "apa, awr: upper limit of a steered λ", above=0)
    kl_gain: float = number(
        0.3,
        "apa, awr: how strongly a steered λ reacts; a KL of e times the target multiplies λ by exp(kl_gain) per "
        "iteration",
        above=0,
        maximum=1,
    )
    kl_damping: float = number(
        1.5, "apa, awr: how strongly a steered λ reacts to changes of log KL; 0 oscillates about the target", minimum=0
    )
    kl_horizon: int = number(10_000, "ppo: number of responses over which β adapts", minimum=1)
    value_coef: float = number(1.0, "weight of the value loss", minimum=0)
    missing_eos_penalty: Optional[float] = number(
        None, "subtracted from the score of a response that is cut at max_new_tokens; null = off", minimum=0
    )
    score_scaling: str = choice(
        "running", "running = divide scores by their running standard deviation", choices=("none", "running")
    )
    score_clip: Optional[float] = number(100.0, "scaled scores are clipped to ± this; null = off", above=0)

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
        "gae",
        "from the critic, per token (gae), relative to the other responses to the prompt (group), or relative to the "
        "initial policy's responses to it (reference)",
        choices=("gae", "group", "reference"),
    )
    gamma: float = number(1.0, "gae: discount factor", above=0, maximum=1)
    gae_lambda: float = number(0.95, "gae: λ; 0 relies on the critic, 1 on the observed returns", minimum=0, maximum=1)
    baseline: str = choice(
        "leave_one_out",
        "what a score is compared with; group: the mean of the others (leave_one_out), of all (mean), the others' soft "
        "maximum at λ (log_mean_exp), or the mean together with that of the log-ratios (least_squares); reference: the "
        "optimal value at λ, or the quantile in place of the score",
        choices=("leave_one_out", "mean", "log_mean_exp", "least_squares", "value", "quantile"),
    )
    group_scale: bool = plain(False, "group: divide by the standard deviation of the prompt's scores, as GRPO does")
    reference_samples: int = number(
        8, "reference: responses of the initial policy to each prompt, sampled and scored once", minimum=1
    )
    drop_unsolved: bool = plain(
        False, "reference: leave out prompts on which no response of the initial policy scores above 0"
    )
    whiten: bool = plain(True, "scale advantages to unit deviation over the rollout; for gae, also to zero mean")
