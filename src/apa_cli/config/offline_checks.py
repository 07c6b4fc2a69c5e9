"""Does the configuration fit where responses come from? Imports no torch."""

from __future__ import annotations

from apa_cli.config.objectives import objectives
from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError


def check_source(config: TrainConfig) -> None:
    """Raise UserError, naming the key and what to do, for the first combination that makes no sense."""
    if config.rollout.offline:
        _check_offline(config)
        return
    kept = config.rollout.reference_cache is not None and config.advantage.name != "reference"
    for key, given in (
        ("data.score_column", config.data.score_column is not None),
        ("data.response_column", config.data.response_column is not None),
        ("rollout.reference_cache", kept),
    ):
        if given:
            problem = "set, but it applies to logged responses, and rollout.source=online"
            raise UserError(key, problem, f"add rollout.source=offline, or {key}=null")


def _check_offline(config: TrainConfig) -> None:
    objective, rollout, stop_if = config.objective, config.rollout, config.training.stop_if
    logged = "but rollout.source=offline"
    if objectives()[objective.name].anchor == "rollout":
        problem = f"{objective.name} needs the probabilities of the policy that sampled, {logged} has none"
        others = " or ".join(f"objective={name}" for name, own in objectives().items() if own.anchor == "initial")
        raise UserError("objective.name", problem, f"add {others}, or rollout.source=online")
    if objective.anchor == "rollout":
        problem = f"rollout needs the probabilities of the policy that sampled, {logged} has none"
        raise UserError("objective.anchor", problem, "add objective.anchor=initial, or rollout.source=online")
    if objective.kl_target is not None:
        problem = f"steered by the KL of sampled responses, {logged} samples none in the loop"
        raise UserError(
            "objective.kl_target", problem, "set it to null and choose objective.kl_lambda; evaluations measure KL"
        )
    if config.advantage.name == "group":
        problem = f"group compares several sampled responses to a prompt, {logged} uses logged ones"
        raise UserError("advantage.name", problem, "add advantage=gae value=separate, or rollout.source=online")
    if config.advantage.name == "reference" and config.data.score_column is not None:
        problem = (
            "set, but advantage.name=reference compares with what the reward says of the initial policy's responses"
        )
        raise UserError(
            "data.score_column", problem, "set it to null, so that the reward scores the logged responses too"
        )
    if rollout.responses_per_prompt > 1:
        problem = f"{rollout.responses_per_prompt}, {logged} uses the logged responses"
        raise UserError("rollout.responses_per_prompt", problem, "set it to 1")
    for name in ("kl_above", "entropy_below", "reward_below"):
        if getattr(stop_if, name) is not None:
            problem = f"limits what the policy samples in the loop, {logged} samples nothing there"
            remedy = "set it to null; checkpoint.best_metric keeps the best evaluation"
            raise UserError(f"training.stop_if.{name}", problem, remedy)
