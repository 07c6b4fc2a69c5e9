"""A run that goes on compares with its initial policy on the rows that it has now."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny_models import CPU, UNEVEN, make_config, make_prompts, save_policy

from apa_cli.evaluation.judge import evaluate
from apa_cli.models.roles import load_models
from apa_cli.rewards.scorers import load_scorers
from apa_cli.training.iteration import Learner
from apa_cli.training.loop import Run, judge_initial_again
from apa_cli.training.steward.health import Health
from apa_cli.training.steward.steward import Steward


def resumed(folder, **changes):
    """A run whose policy has moved since its initial judgement, that judgement, and the lines it logs."""
    config = make_config(folder, **changes)
    models, lines = load_models(config, CPU), []
    scorers = load_scorers(config, models.policy, CPU)
    prompts = make_prompts(models.policy.tokenizer, UNEVEN[:6])
    initial = evaluate(models, scorers, prompts, config)
    with torch.no_grad():
        for parameter in models.policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    tracker = SimpleNamespace(note=lines.append, warn=lines.append, phase=lambda name: None)
    state = SimpleNamespace(iteration=3, work=None, initial=initial, health=Health.at_start(config.training))
    interrupts = SimpleNamespace(immediate=nullcontext)
    run = Run(
        learner=Learner(config=config, models=models, source=None, scorers=scorers),
        steward=Steward(config, models, scorers, state, tracker, interrupts),
        held_out=prompts,
        tracker=tracker,
        checkpoints=None,
    )
    return run, state, initial, lines


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
@pytest.mark.parametrize("lost", ["all", "opponents", "rows", "nothing"])
def test_it_is_judged_again_where_the_checkpoint_lacks_it(policy_dir, rank, lost):
    run, state, initial, lines = resumed(policy_dir(), policy__adapter__r=rank)
    if lost == "all":
        state.initial = None
    elif lost == "opponents":
        initial.opponents.clear()
    elif lost == "rows":
        initial.responses.reverse()
    judge_initial_again(run, state)
    assert bool(lines) == (lost != "nothing")
    expected = evaluate(
        load_models(run.config, CPU), run.learner.scorers, run.held_out, run.config
    )  # from the start itself
    for name in ("responses", "opponents"):
        found = [(r.prompt, r.token_ids) for r in getattr(state.initial, name)]
        assert found == [(r.prompt, r.token_ids) for r in getattr(expected, name)]
    assert state.initial.metrics["eval/kl_exact"] == pytest.approx(0.0, abs=1e-6)


def test_a_start_that_is_gone_gives_no_win_rates(policy_dir, tmp_path, plain_tokenizer):
    other = save_policy(tmp_path, plain_tokenizer, seed=9)
    run, state, initial, lines = resumed(policy_dir(), reference__path=str(other))
    initial.opponents.clear()
    judge_initial_again(run, state)
    assert state.initial is None
    assert lines == ["the checkpoint has no evaluation of the initial policy on these prompts: no win rates"]
