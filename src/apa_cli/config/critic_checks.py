"""Do critic, advantage estimator and responses per prompt fit each other? Imports no torch."""

from __future__ import annotations

from apa_cli.config.schema import AdvantageConfig, ObjectiveConfig, TrainConfig
from apa_cli.errors import UserError


def check_advantage(config: TrainConfig) -> None:
    """Raise UserError, naming the key and what to do, for the first combination that makes no sense."""
    advantage, rollout, without_critic = config.advantage, config.rollout, config.value.kind == "none"
    if rollout.batch_size % rollout.responses_per_prompt:
        raise UserError(
            "rollout.batch_size",
            f"{rollout.batch_size} is not a multiple of rollout.responses_per_prompt={rollout.responses_per_prompt}",
            f"make it {_next_multiple(rollout.batch_size, rollout.responses_per_prompt)}",
        )
    if advantage.name == "gae" and without_critic:
        raise UserError(
            "advantage.name",
            "gae needs a critic, but value.kind=none",
            "add advantage=group rollout.responses_per_prompt=4, or value=separate",
        )
    if advantage.name == "gae" and advantage.group_scale:
        raise UserError(
            "advantage.group_scale", "set, but advantage.name=gae", "add advantage=group, or set it to false"
        )
    if advantage.name == "group":
        _check_group(config)
    if config.value.warmup_iterations >= config.training.iterations:
        raise UserError(
            "value.warmup_iterations",
            f"{config.value.warmup_iterations}, but training.iterations={config.training.iterations} then leaves none "
            "for the policy",
            "lower value.warmup_iterations or raise training.iterations",
        )
    if without_critic:
        _check_no_critic(config)


def _check_group(config: TrainConfig) -> None:
    if config.value.kind != "none":
        more = " rollout.responses_per_prompt=4" if config.rollout.responses_per_prompt < 2 else ""
        problem = f"{config.value.kind}, but advantage.name=group uses no critic"
        raise UserError("value.kind", problem, f"add value=none{more}")
    if config.rollout.responses_per_prompt < 2:
        raise UserError(
            "rollout.responses_per_prompt",
            "1, but advantage.name=group compares the responses to a prompt",
            "add rollout.responses_per_prompt=4",
        )
    for name, why in (("gamma", "a response is one action without discounting"), ("gae_lambda", "it belongs to GAE")):
        default = getattr(AdvantageConfig(), name)
        if getattr(config.advantage, name) != default:
            key = f"advantage.{name}"
            raise UserError(key, f"set, but advantage.name=group: {why}", f"add {key}={default:g}, or advantage=gae")


def _check_no_critic(config: TrainConfig) -> None:
    objective, default = config.objective, ObjectiveConfig()
    # null switches value clipping off, which it is
    clip = objective.value_clip_range
    for key, given, leave in (
        ("value.warmup_iterations", config.value.warmup_iterations > 0, "0"),
        ("value.keep", config.value.keep, "false"),
        ("objective.value_coef", objective.value_coef != default.value_coef, f"{default.value_coef:g}"),
        ("objective.value_clip_range", clip is not None and clip != default.value_clip_range, "null"),
    ):
        if given:
            raise UserError(key, "set, but value.kind=none leaves no critic to train", f"add {key}={leave}")


def _next_multiple(number: int, factor: int) -> int:
    return -(-number // factor) * factor
