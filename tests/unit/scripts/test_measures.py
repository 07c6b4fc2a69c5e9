"""The studies' arithmetic on hand-worked runs: what a run comes to, what is chosen, and differences paired by seed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from apa_cli.runs.folders import FINISHED, Run

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from studies import measures
from studies.measures import Measure


def run(evaluations: Any = (), kls: Any = (), *, seed: int = 0, entropy: Any = (1.0, 0.9), unique: float = 1.0) -> Run:
    """One row an evaluation: (iteration, KL, evaluator); `kls` are of the rollouts 1, 2, …, of 10 responses each."""
    rows: dict[int, dict[str, Any]] = {}
    for iteration, kl, reward in evaluations:
        last = iteration == evaluations[-1][0]
        row = {"iteration": iteration, "eval/kl": kl, "eval/evaluator": reward, "eval/unique_fraction": unique}
        rows[iteration] = {**row, "eval/entropy": entropy[last]}
    for iteration, kl in enumerate(kls, start=1):
        rows.setdefault(iteration, {"iteration": iteration})["kl/to_init"] = kl
    config = {"seed": seed, "rollout.batch_size": 10}
    return Run(folder=Path(f"r{seed}"), status=FINISHED, config=config, rows=[rows[i] for i in sorted(rows)])


def test_reward_is_read_on_the_line_where_kl_first_comes_to_the_level():
    # 0 → 1.5 nats, then 1.5 → 3.5 with rewards 0.6 → 1.0: at 2 nats a quarter of the way. Later it falls back.
    one = run([(0, 0.0, 0.0), (5, 1.5, 0.6), (10, 3.5, 1.0), (15, 1.0, 5.0), (20, 3.0, 9.0)])
    assert measures.reward_at_kl(one, 2.0) == pytest.approx(0.7)
    assert measures.reward_at_kl(one, 3.5) == 1.0
    assert measures.reward_at_kl(one, 5.0) is None  # not reached, and not extrapolated
    assert measures.at_level([(2.0, 7.0), (3.0, 8.0)], 1.0) == 7.0  # a level that holds from the start
    assert measures.at_level([], 1.0) is None


def test_costs_count_responses_until_the_evaluator_comes_to_a_level():
    one = run([(0, 0, 0.0), (4, 1, 0.8), (8, 2, 1.2)])
    assert measures.cost_until(one, 1.0) == pytest.approx(60.0)
    assert measures.cost_until(one, 1.5) is None


def test_the_mean_over_training_is_the_area_over_its_width():
    # trapezia: 20·(0 + 1)/2 = 10 and 60·(1 + 2)/2 = 90; over 80 responses
    assert measures.over_training(run([(0, 0, 0), (2, 1, 1), (8, 1, 2)])) == pytest.approx(100 / 80)
    assert measures.over_training(run([(0, 0, 1)])) is None


def test_tails_begin_after_their_part_of_the_iterations():
    one = run([(0, 0, 9.0), *((i, 1.0, float(i)) for i in (2, 4, 5, 6))])
    assert measures.tail(one, "eval/evaluator") == 5.5
    assert measures.tail(run(kls=[*[0.0] * 18, 4.0, 2.0]), "kl/to_init", part=10) == pytest.approx(3.0)
    assert measures.between(one, "eval/evaluator", 2, 4) == 3.0
    assert measures.tail(run(), "kl/to_init") is None


def test_back_and_forth_is_path_beyond_net_change():
    assert measures.back_and_forth(run(kls=[0, 1, 2, 5])) == pytest.approx(0.0)
    assert measures.back_and_forth(run(kls=[0, 3, 1, 2])) == pytest.approx((3 + 2 + 1 - 2) / 3)
    assert measures.back_and_forth(run()) is None


def test_the_level_in_common_is_the_highest_half_nat_that_every_run_comes_to():
    far, near = run([(0, 0, 0), (3, 6.4, 1), (6, 5.0, 1)]), run([(0, 0, 0), (6, 4.7, 1)])
    assert (measures.common_level([far], [near]), measures.common_level([far])) == (4.5, 6.0)
    assert measures.common_level([far], [run([(0, 0, 0), (6, 0.4, 1)])]) is None
    assert [each.name for each in measures.at_common_kl([far], low=2.0)] == [
        "evaluator at 2 nats",
        "evaluator at 6 nats",
    ]


@pytest.mark.parametrize(
    ("entropy", "unique", "gone"),
    [((2.0, 1.0), 0.9, False), ((2.0, 0.99), 1.0, True), ((2.0, 2.0), 0.89, True), ((2.0, None), 1.0, True)],
)
def test_collapse_is_half_of_the_entropy_lost_or_a_tenth_of_the_responses_repeated(entropy, unique, gone):
    assert measures.collapsed(run([(0, 0, 0), (1, 1, 1)], entropy=entropy, unique=unique)) is gone


def test_the_best_cell_that_did_not_collapse_is_chosen_else_the_best_of_all():
    rewards = {"one": (1.0, 0.9), "gone": (3.0, 0.2), "best": (2.0, 0.9)}
    cells = {name: [run([(0, 0, 0), (1, 1, r)], entropy=(1.0, e))] for name, (r, e) in rewards.items()}
    assert measures.choose(cells) == ("best", True)
    assert measures.choose({"gone": cells["gone"]}) == ("gone", False)
    assert measures.choose({"unjudged": [run(kls=[1.0])]}) is None


def pair(ours: dict[int, float], theirs: dict[int, float]) -> measures.Difference:
    """A comparison of final evaluator rewards by seed."""
    final = Measure(name="reward", of=lambda run: run.last("eval/evaluator"))
    named = [
        (name, [run([(0, 0, 0), (1, 1, v)], seed=s) for s, v in values.items()])
        for name, values in (("APA", ours), ("PPO", theirs))
    ]
    return measures.compare(*named, final)


def test_differences_are_paired_by_seed_with_students_t():
    # Differences 1, 2, 3 of the seeds that both have: mean 2, deviation 1, t(2) = 4.303.
    difference = pair({1: 11.0, 2: 22.0, 3: 33.0, 4: 99.0}, {1: 10.0, 2: 20.0, 3: 30.0, 5: 0.0})
    assert difference.value is not None
    assert (difference.value.mean, difference.value.count) == (pytest.approx(2.0), 3)
    assert difference.value.half == pytest.approx(4.303 / 3**0.5)
    assert (difference.judged, difference.sign) == (True, 0)  # 2 ± 2.48
    assert difference.sentence() == "reward: APA − PPO = +2.00 ± 2.48 over 3 pairs of seeds."


@pytest.mark.parametrize(("shift", "way"), [(3.0, "higher"), (-3.0, "lower")])
def test_a_difference_has_a_sign_only_where_the_interval_lies_on_one_side(shift, way):
    # Differences shift − 0.1, shift, shift + 0.1: deviation 0.1, half 4.303 · 0.1 / √3 = 0.248.
    difference = pair({1: shift - 0.1, 2: shift, 3: shift + 0.1}, {1: 0.0, 2: 0.0, 3: 0.0})
    assert difference.sign == (1 if shift > 0 else -1)
    assert difference.sentence() == f"reward: APA is {way} than PPO by 3.00 ± 0.25 over 3 pairs of seeds."


def test_too_few_pairs_or_no_difference_decide_nothing():
    alone, nobody, same = pair({1: 5.0}, {1: 0.0, 2: 0.0}), pair({1: 5.0}, {2: 0.0}), pair({1: 1, 2: 2}, {1: 1, 2: 2})
    assert [(each.judged, each.sign) for each in (alone, nobody, same)] == [(False, 0), (False, 0), (True, 0)]
    assert nobody.value is None
    assert alone.sentence().startswith("reward: fewer than two seeds in which APA and PPO both reach it")
    assert "the same for APA and PPO over 2 pairs" in same.sentence()
