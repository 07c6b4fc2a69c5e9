"""Do objective, advantage, critic and responses per prompt fit each other? Imports no torch."""

from __future__ import annotations

from apa_cli.config.objectives import objectives
from apa_cli.config.schema import AdvantageConfig, ObjectiveConfig, TrainConfig
from apa_cli.errors import UserError

BASELINES = {  # of each advantage; gae has none, and leaves the key at its default
    "gae": ("leave_one_out",),
    "group": ("leave_one_out", "mean", "log_mean_exp", "least_squares"),
    "reference": ("value", "quantile"),
}


def check_objective(config: TrainConfig) -> None:
    """Raise UserError, naming the key and what to do, for the first combination that makes no sense."""
    _check_own_keys(config)
    advantage, rollout, without_critic = config.advantage, config.rollout, config.value.kind == "none"
    if rollout.batch_size % rollout.responses_per_prompt:
        raise UserError(
            "rollout.batch_size",
            f"{rollout.batch_size} is not a multiple of rollout.responses_per_prompt={rollout.responses_per_prompt}",
            f"make it {_next_multiple(rollout.batch_size, rollout.responses_per_prompt)}",
        )
    if advantage.name == "gae":
        _check_gae(config)
    else:
        _check_one_per_response(config)
    _check_baseline(config)
    if rollout.dynamic_sampling and advantage.name != "group":
        problem = f"{rollout.dynamic_sampling}, but advantage.name={advantage.name} compares no responses to a prompt"
        raise UserError("rollout.dynamic_sampling", problem, "set it to 0, or add objective=grpo")
    if config.value.warmup_iterations >= config.training.iterations:
        raise UserError(
            "value.warmup_iterations",
            f"{config.value.warmup_iterations}, but training.iterations={config.training.iterations} then leaves none "
            "for the policy",
            "lower value.warmup_iterations or raise training.iterations",
        )
    if without_critic:
        _check_no_critic(config)


def _check_own_keys(config: TrainConfig) -> None:
    objective, facts = config.objective, objectives()[config.objective.name]
    for name in ("target_bound", "huber_delta", "level", "anchor", "length_divisor", "kl_target"):
        default = getattr(ObjectiveConfig(), name)
        if getattr(objective, name) != default and name not in facts.reads:
            owners = [other for other, known in objectives().items() if name in known.reads]
            raise UserError(
                f"objective.{name}",
                f"only used by {', '.join(owners)}, but objective.name={objective.name}",
                f"add objective={owners[0]}, or set it to {'null' if default is None else default}",
            )
    if objective.kl_target is None:
        return
    if facts.knob == "kl_lambda":
        settings = {**vars(objective), **objective.resolved}
        value, lowest, highest = settings["kl_lambda"], settings["kl_lambda_min"], objective.kl_lambda_max
        if lowest >= highest:
            raise UserError(
                "objective.kl_lambda_min",
                f"{lowest:g}, but objective.kl_lambda_max={highest:g}",
                "lower objective.kl_lambda_min or raise objective.kl_lambda_max",
            )
        if not lowest <= value <= highest:
            raise UserError(
                "objective.kl_lambda",
                f"{value:g}, but a steered λ stays between {lowest:g} and {highest:g}",
                "start between them, or change objective.kl_lambda_min or objective.kl_lambda_max",
            )
        return
    if objective.kl_coef == 0:
        raise UserError(
            "objective.kl_coef", "0, which cannot be steered", "set it above 0, or set objective.kl_target=null"
        )
    if objective.kl_horizon <= config.rollout.batch_size:
        raise UserError(
            "objective.kl_horizon",
            f"{objective.kl_horizon}, but one iteration already has {config.rollout.batch_size} responses",
            "raise it, so that β adapts over several iterations",
        )


def _check_gae(config: TrainConfig) -> None:
    objective, advantage = config.objective, config.advantage
    if config.value.kind == "none":
        remedy = "add advantage=group rollout.responses_per_prompt=4, or value=separate"
        raise UserError("advantage.name", "gae needs a critic, but value.kind=none", remedy)
    if advantage.group_scale:
        raise UserError(
            "advantage.group_scale", "set, but advantage.name=gae", "add advantage=group, or set it to false"
        )
    if objective.name == "grpo" or objective.level == "sequence":
        key = "objective.name" if objective.name == "grpo" else "objective.level"
        problem = f"{objective.name if key.endswith('name') else objective.level} has one advantage for each response"
        remedy = "add advantage=group value=none rollout.responses_per_prompt=8, as the choices objective=NAME do"
        raise UserError(key, f"{problem}, but advantage.name=gae", remedy)


def _check_one_per_response(config: TrainConfig) -> None:
    """Group and reference: no critic, and a response is one action."""
    name, group = config.advantage.name, config.advantage.name == "group"
    if config.value.kind != "none":
        more = " rollout.responses_per_prompt=4" if group and config.rollout.responses_per_prompt < 2 else ""
        problem = f"{config.value.kind}, but advantage.name={name} uses no critic"
        raise UserError("value.kind", problem, f"add value=none{more}")
    if group and config.rollout.responses_per_prompt < 2:
        raise UserError(
            "rollout.responses_per_prompt",
            "1, but advantage.name=group compares the responses to a prompt",
            "add rollout.responses_per_prompt=4",
        )
    for key, why in (("gamma", "a response is one action without discounting"), ("gae_lambda", "it belongs to GAE")):
        default = getattr(AdvantageConfig(), key)
        if getattr(config.advantage, key) != default:
            remedy = f"add advantage.{key}={default:g}, or advantage=gae"
            raise UserError(f"advantage.{key}", f"set, but advantage.name={name}: {why}", remedy)


def _check_baseline(config: TrainConfig) -> None:
    advantage, objective, k = config.advantage, config.objective, config.rollout.responses_per_prompt
    name, baseline = advantage.name, advantage.baseline
    known = BASELINES[name]
    if baseline not in known:
        owner = next(other for other, baselines in BASELINES.items() if other != "gae" and baseline in baselines)
        remedy = f"set it to {' or '.join(known)}, or add advantage={owner}"
        raise UserError("advantage.baseline", f"{baseline}, but advantage.name={name}", remedy)
    if baseline in ("leave_one_out", "mean"):
        return
    if advantage.group_scale:
        remedy = "set it to false, or advantage.baseline to leave_one_out or mean"
        raise UserError("advantage.group_scale", f"set, but {baseline} is in units of the scores", remedy)
    if objectives()[objective.name].knob != "kl_lambda":
        raise UserError(
            "advantage.baseline", f"{baseline} needs λ, which {objective.name} has not", "add objective=apa"
        )
    if baseline == "least_squares":
        if (objective.name, objective.level) != ("apa", "sequence"):
            remedy = "add objective=gvpo, or choose another baseline"
            raise UserError("advantage.baseline", "least_squares is for apa by sequence", remedy)
        if config.training.minibatch_size % k:
            raise UserError(
                "training.minibatch_size",
                f"{config.training.minibatch_size}, but least_squares keeps the {k} responses to a prompt together",
                f"make it {_next_multiple(config.training.minibatch_size, k)}",
            )
    if name == "reference" and objective.score_scaling != "none":
        problem = f"{objective.score_scaling}, but the initial policy's scores are kept as they are"
        raise UserError("objective.score_scaling", problem, "set it to none, as objective=a_star_po and qrpo do")


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
