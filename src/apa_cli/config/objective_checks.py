"""Do objective, advantage, critic, and where responses come from, fit each other? Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from apa_cli.config.fields import Wrong
from apa_cli.config.objectives import objectives
from apa_cli.config.schema import TrainConfig

BASELINES = {  # of each advantage; gae has none, and leaves the key at its default
    "gae": ("leave_one_out",),
    "group": ("leave_one_out", "mean", "log_mean_exp", "least_squares"),
    "reference": ("value", "quantile"),
}


def objective_rules(config: TrainConfig) -> Iterator[Wrong]:
    objective, value, size = config.objective, config.value, config.rollout.batch_size
    name, k, iterations = config.advantage.name, config.rollout.responses_per_prompt, config.training.iterations
    if objective.kl_target is not None:
        yield from _steering_rules(config)
    if size % k:
        problem = f"{size} is not a multiple of rollout.responses_per_prompt={k}"
        yield "rollout.batch_size", problem, f"make it {-(-size // k) * k}"
    if name == "gae":
        if value.kind == "none":
            remedy = "add advantage=group rollout.responses_per_prompt=4, or value=separate"
            yield "advantage.name", "gae needs a critic, but value.kind=none", remedy
        for key, given, is_one in (("name", objective.name, "grpo"), ("level", objective.level, "sequence")):
            if given == is_one:
                problem = f"{given} has one advantage for each response, but advantage.name=gae"
                remedy = "add advantage=group value=none rollout.responses_per_prompt=8, as the choices objective=NAME"
                yield f"objective.{key}", problem, f"{remedy} do"
    else:
        too_few = name == "group" and k < 2
        if value.kind != "none":
            more = " rollout.responses_per_prompt=4" if too_few else ""
            yield "value.kind", f"{value.kind}, but advantage.name={name} uses no critic", f"add value=none{more}"
        if too_few:
            problem = "1, but advantage.name=group compares the responses to a prompt"
            yield "rollout.responses_per_prompt", problem, "add rollout.responses_per_prompt=4"
    yield from _baseline_rules(config)
    if value.warmup_iterations >= iterations:
        problem = f"{value.warmup_iterations}, but training.iterations={iterations} then leaves none for the policy"
        yield "value.warmup_iterations", problem, "lower value.warmup_iterations or raise training.iterations"


def _steering_rules(config: TrainConfig) -> Iterator[Wrong]:
    objective = config.objective
    if objectives()[objective.name].knob == "kl_lambda":
        settings = {**vars(objective), **objective.resolved}
        value, lowest, highest = settings["kl_lambda"], settings["kl_lambda_min"], objective.kl_lambda_max
        bounds = "objective.kl_lambda_min or objective.kl_lambda_max"
        if lowest >= highest:
            problem = f"{lowest:g}, but objective.kl_lambda_max={highest:g}"
            yield "objective.kl_lambda_min", problem, "lower objective.kl_lambda_min or raise objective.kl_lambda_max"
        if not lowest <= value <= highest:
            problem = f"{value:g}, but a steered λ stays between {lowest:g} and {highest:g}"
            yield "objective.kl_lambda", problem, f"start between them, or change {bounds}"
        return
    if objective.kl_coef == 0:
        yield "objective.kl_coef", "0, which cannot be steered", "set it above 0, or set objective.kl_target=null"
    if objective.kl_horizon <= config.rollout.batch_size:
        problem = f"{objective.kl_horizon}, but one iteration already has {config.rollout.batch_size} responses"
        yield "objective.kl_horizon", problem, "raise it, so that β adapts over several iterations"


def _baseline_rules(config: TrainConfig) -> Iterator[Wrong]:
    advantage, objective, k = config.advantage, config.objective, config.rollout.responses_per_prompt
    name, baseline, size, key = advantage.name, advantage.baseline, config.training.minibatch_size, "advantage.baseline"
    if baseline not in (known := BASELINES[name]):
        owner = next(other for other, baselines in BASELINES.items() if other != "gae" and baseline in baselines)
        remedy = f"set it to {' or '.join(known)}, or add advantage={owner}"
        yield key, f"{baseline}, but advantage.name={name}", remedy
    if baseline in ("leave_one_out", "mean"):
        return
    if advantage.group_scale:
        remedy = "set it to false, or advantage.baseline to leave_one_out or mean"
        yield "advantage.group_scale", f"set, but {baseline} is in units of the scores", remedy
    if objectives()[objective.name].knob != "kl_lambda":
        yield key, f"{baseline} needs λ, which {objective.name} has not", "add objective=apa"
    if baseline == "least_squares":
        if (objective.name, objective.level) != ("apa", "sequence"):
            yield key, "least_squares is for apa by sequence", "add objective=gvpo, or choose another baseline"
        if size % k:
            problem = f"{size}, but least_squares keeps the {k} responses to a prompt together"
            yield "training.minibatch_size", problem, f"make it {-(-size // k) * k}"
    if name == "reference" and objective.score_scaling != "none":
        problem = f"{objective.score_scaling}, but the initial policy's scores are kept as they are"
        yield "objective.score_scaling", problem, "set it to none, as objective=a_star_po and qrpo do"


def offline_rules(config: TrainConfig) -> Iterator[Wrong]:
    if not config.rollout.offline:
        return
    objective, stop_if, k = config.objective, config.training.stop_if, config.rollout.responses_per_prompt
    logged = "but rollout.source=offline"
    others = " or ".join(f"objective={name}" for name, own in objectives().items() if own.anchor == "initial")
    for key, value, is_rollouts, remedy in (
        ("name", objective.name, objectives()[objective.name].anchor == "rollout", others),
        ("anchor", objective.anchor, objective.anchor == "rollout", "objective.anchor=initial"),
    ):
        if is_rollouts:
            problem = f"{value} needs the probabilities of the policy that sampled, {logged} has none"
            yield f"objective.{key}", problem, f"add {remedy}, or rollout.source=online"
    if objective.kl_target is not None:
        problem = f"steered by the KL of sampled responses, {logged} samples none in the loop"
        remedy = "set it to null and choose objective.kl_lambda; evaluations measure KL"
        yield "objective.kl_target", problem, remedy
    if config.advantage.name == "group":
        problem = f"group compares several sampled responses to a prompt, {logged} uses logged ones"
        yield "advantage.name", problem, "add advantage=gae value=separate, or rollout.source=online"
    if config.advantage.name == "reference" and config.data.score_column is not None:
        problem = "set, but advantage.name=reference compares with scores of the initial policy's responses"
        yield "data.score_column", problem, "set it to null, so that the reward scores the logged responses too"
    if k > 1:
        yield "rollout.responses_per_prompt", f"{k}, {logged} uses the logged responses", "set it to 1"
    for name in ("kl_above", "entropy_below", "reward_below"):
        if getattr(stop_if, name) is not None:
            problem = f"limits what the policy samples in the loop, {logged} samples nothing there"
            remedy = "set it to null; checkpoint.best_metric keeps the best evaluation"
            yield f"training.stop_if.{name}", problem, remedy
