"""What a run counts: limits of training.stop_if, skipped minibatches, the token budget; and what a checkpoint keeps."""

import json
import math

import pytest

from apa_cli.config.schema import StopIfConfig, TrainingConfig
from apa_cli.training.steward.health import Guards, Health

NAMES = {"kl_above": "kl/to_init", "entropy_below": "policy/entropy", "reward_below": "reward/mean"}
CALM = {"kl/to_init": 1.0, "policy/entropy": 2.0, "reward/mean": 0.0}


def fired_at(guards, name, values):
    """The number of the first value after which the guards fire, from 1 (None where they never do), and the guards."""
    for number, value in enumerate(values, start=1):
        guards = guards.after({**CALM, name: value})
        if guards.fired:
            return number, guards
    return None, guards


@pytest.mark.parametrize(
    ("key", "limit", "beyond", "within"),
    [("kl_above", 5.0, 5.1, 5.0), ("entropy_below", 0.5, 0.4, 0.5), ("reward_below", -1.0, -1.1, -1.0)],
)
def test_each_limit_fires_after_its_patience_in_a_row(key, limit, beyond, within):
    def guards(patience):
        return Guards(config=StopIfConfig(**{key: limit}, patience=patience))

    def at(guards, name, values):
        return fired_at(guards, name, values)[0]

    name = NAMES[key]
    assert at(guards(3), name, [beyond] * 5) == 3
    assert at(guards(1), name, [within, beyond]) == 2
    assert at(guards(3), name, [beyond, beyond, within, beyond, beyond, beyond]) == 6
    assert at(guards(2), name, [within] * 9) is None  # the limit itself is not beyond
    assert at(guards(2), name, [beyond, math.nan, beyond]) == 3  # a missing figure neither counts nor clears
    assert at(Guards(config=StopIfConfig(patience=1)), name, [beyond * 1e6] * 4) is None


def test_the_reason_says_which_limit_and_how_far():
    guards = Guards(config=StopIfConfig(kl_above=5.0, patience=2))
    _, guards = fired_at(guards, "kl/to_init", [6.0, 7.25])
    assert guards.fired == "training.stop_if.kl_above: kl/to_init above 5 for 2 iterations in a row, last 7.25"


def test_one_limit_beyond_and_another_do_not_add_up():
    guards = Guards(config=StopIfConfig(kl_above=5.0, reward_below=-1.0, patience=2))
    later = guards.after({**CALM, "kl/to_init": 9.0}).after({**CALM, "reward/mean": -9.0})
    assert later.fired is guards.fired is None
    assert not guards.beyond  # as they were


def test_health_comes_back_whole_and_a_changed_setting_counts_anew():
    config = TrainingConfig(max_skipped=4, microbatch_tokens=1000)
    config.stop_if = StopIfConfig(kl_above=1.0, patience=2)
    health = Health.at_start(config)
    health.skip("scores", "")
    health.tokens, health.unscored = 250, 2
    health.guards = health.guards.after({"kl/to_init": 2.0})
    saved = json.loads(json.dumps(health.state_dict()))
    again = Health.at_start(config)
    again.load_state_dict(saved)
    assert again == health
    assert again.guards.after({"kl/to_init": 2.0}).fired
    for limit, tokens in ((3.0, 4000), (None, 100)):
        changed = TrainingConfig(microbatch_tokens=tokens)
        changed.stop_if = StopIfConfig(kl_above=limit, patience=1)
        again = Health.at_start(changed)
        again.load_state_dict(saved)
        assert (again.tokens, again.skipped, again.guards.fired) == (tokens, 1, None)
