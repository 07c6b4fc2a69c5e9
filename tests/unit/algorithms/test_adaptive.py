import math
import random

import pytest

from apa_cli.algorithms import SteeredLambda

NAN = math.nan


def steered(value=0.3, **settings):
    return SteeredLambda(
        value, **{"target": 5.0, "gain": 0.3, "damping": 1.5, "floor": 0.05, "ceiling": 20.0, **settings}
    )


def test_by_hand():
    knob = steered(1.0, target=4.0, gain=0.2, damping=0.5)
    knob.update(2.0)  # error log ½ = −0.693147, no change yet: step 0.2 · −0.693147
    assert knob.value == pytest.approx(0.5**0.2, abs=1e-12)
    knob.update(4.0)  # error 0, changed by 0.693147: step 0.5 · 0.693147
    assert knob.value == pytest.approx(0.5**0.2 * 2**0.5, abs=1e-12)
    knob.update(4.0)  # on target, and standing still
    assert knob.value == pytest.approx(0.5**0.2 * 2**0.5, abs=1e-12)
    knob.update(1e9)  # error clipped to 1: 0.2 + 0.5 = 0.7, clipped to 0.5
    assert knob.value == pytest.approx(0.5**0.2 * 2**0.5 * math.exp(0.5), abs=1e-12)
    knob.update(1e9)  # the same again, with no change: 0.2
    assert knob.value == pytest.approx(0.5**0.2 * 2**0.5 * math.exp(0.7), abs=1e-12)


def test_an_estimate_of_nothing_or_less_is_too_little():
    for kl in (0.0, -0.4, 1e-300):
        knob = steered(1.0)
        knob.update(kl)
        assert knob.value == pytest.approx(math.exp(-0.3), abs=1e-12)


def test_floor_and_ceiling():
    low, high = steered(0.06), steered(15.0)
    for _ in range(5):
        low.update(0.1)
        high.update(100.0)
    assert (low.value, high.value) == (0.05, 20.0)
    high.update(0.1)  # a step of −0.3 − 1.5 · 2, clipped to −½: it comes off the ceiling at once
    assert high.value == pytest.approx(20 * math.exp(-0.5))


def test_resumes_where_it_was():
    knob = steered()
    knob.update(1.0)
    knob.update(3.0)
    resumed = steered(7.0)
    resumed.load_state_dict(knob.state_dict())
    for each in (knob, resumed):
        each.update(4.0)
    assert resumed.value == knob.value
    fresh = steered(7.0)
    fresh.load_state_dict(steered().state_dict())
    assert fresh.value == 0.3
    narrower = steered(1.0, floor=0.5)
    narrower.load_state_dict(steered().state_dict())
    assert narrower.value == 0.5
    for wrong in ({"value": NAN, "error": None}, {"value": 0.3, "error": NAN}, {"value": None, "error": 0.0}):
        with pytest.raises(ValueError, match=r"value|state"):
            resumed.load_state_dict(wrong)
    with pytest.raises(KeyError):
        resumed.load_state_dict({"value": 0.3})


@pytest.mark.parametrize(
    "wrong",
    [{"value": 0.0}, {"target": -1.0}, {"gain": 0.0}, {"damping": -0.1}, {"floor": 0.0}, {"ceiling": NAN}],
    ids=str,
)
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        steered(**wrong)


def test_refuses_a_start_beyond_its_bounds_and_kl_that_is_no_number():
    with pytest.raises(ValueError, match="between"):
        steered(0.01)
    knob = steered()
    with pytest.raises(ValueError, match="kl must be finite"):
        knob.update(NAN)
    assert knob.value == 0.3


# A plant that answers late. The log-ratios of the policy are of size s, KL is s², and s goes a part 1/delay of the way
# to where λ sends it: s* = √(5.8 (0.3 / λ)^1.2), as long runs of the built-in task with λ 0.1, 0.3 and 1 end
# (11.7, 5.7 and 1.1 nats). KL is measured with an error of a tenth.


def run(knob, *, seed, iterations, delay=14.0):
    noise, size, found = random.Random(seed), 0.0, []
    for _ in range(iterations):
        found.append(size**2)
        knob.update(size**2 * math.exp(noise.gauss(0, 0.1)))
        size += (math.sqrt(5.8 * (0.3 / knob.value) ** 1.2) - size) / delay
    return found


STARTS = [(target, start) for target in (2.0, 5.0, 10.0) for start in (3.0, 0.05)]


@pytest.mark.parametrize(("target", "start"), STARTS)
@pytest.mark.parametrize("delay", [8.0, 14.0])
def test_brings_a_slow_plant_to_its_target_from_both_sides(target, start, delay):
    for seed in range(5):
        found = run(steered(start, target=target), seed=seed, iterations=60, delay=delay)
        last = found[40:]
        assert sum(last) / len(last) == pytest.approx(target, rel=0.15)
