"""training.stop_if: what counts as beyond a limit, how often, and what a checkpoint keeps of it."""

import json
import math

import pytest

from apa_cli.config.schema import StopIfConfig
from apa_cli.training.steward.guards import Guards

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
        return Guards(StopIfConfig(**{key: limit}, patience=patience))

    def at(guards, name, values):
        return fired_at(guards, name, values)[0]

    name = NAMES[key]
    assert at(guards(3), name, [beyond] * 5) == 3
    assert at(guards(1), name, [within, beyond]) == 2
    assert at(guards(3), name, [beyond, beyond, within, beyond, beyond, beyond]) == 6
    assert at(guards(2), name, [within] * 9) is None  # the limit itself is not beyond
    assert at(guards(2), name, [beyond, math.nan, beyond]) == 3  # a missing figure neither counts nor clears
    assert at(Guards(StopIfConfig(patience=1)), name, [beyond * 1e6] * 4) is None


def test_the_reason_says_which_limit_and_how_far():
    guards = Guards(StopIfConfig(kl_above=5.0, patience=2))
    _, guards = fired_at(guards, "kl/to_init", [6.0, 7.25])
    assert guards.fired == "training.stop_if.kl_above: kl/to_init above 5 for 2 iterations in a row, last 7.25"


def test_one_limit_beyond_and_another_do_not_add_up():
    guards = Guards(StopIfConfig(kl_above=5.0, reward_below=-1.0, patience=2))
    later = guards.after({**CALM, "kl/to_init": 9.0}).after({**CALM, "reward/mean": -9.0})
    assert later.fired is None
    assert guards.state_dict() == Guards(StopIfConfig()).state_dict()  # as they were


def test_counts_go_on_from_a_checkpoint():
    number, guards = fired_at(Guards(StopIfConfig(kl_above=5.0, patience=3)), "kl/to_init", [6.0, 6.0])
    assert number is None
    saved = json.loads(json.dumps(guards.state_dict()))
    again = Guards(StopIfConfig(kl_above=5.0, patience=3))
    again.load_state_dict(saved)
    assert again.fired is None
    number, again = fired_at(again, "kl/to_init", [6.0])
    assert number == 1
    fired = json.loads(json.dumps(again.state_dict()))
    for limit, expected in ((5.0, True), (8.0, False), (None, False)):  # the limit may have been changed since
        changed = Guards(StopIfConfig(kl_above=limit, patience=3))
        changed.load_state_dict(fired)
        assert bool(changed.fired) == expected
