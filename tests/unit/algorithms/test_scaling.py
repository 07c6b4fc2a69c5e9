import json
import math
import random
import statistics

import pytest
import torch

from apa_cli.algorithms import RunningMoments, scale_scores


def test_moments_are_those_of_all_scores_ever_seen():
    draw = random.Random(0)
    moments, seen = RunningMoments(), []
    for size in (1, 5, 0, 64, 2, 1, 17):
        batch = [draw.gauss(40.0, 3.0) for _ in range(size)]
        seen += batch
        moments.update(torch.tensor(batch, dtype=torch.float64))
        assert moments.count == len(seen)
        assert moments.mean == pytest.approx(statistics.mean(seen), abs=1e-9)
        if len(seen) > 1:
            assert moments.var == pytest.approx(statistics.variance(seen), rel=1e-9)
            assert moments.std == pytest.approx(statistics.stdev(seen), rel=1e-9)


def test_a_large_mean_does_not_drown_the_spread():
    moments = RunningMoments()
    for _ in range(50):
        moments.update(torch.tensor([1e8, 1e8 + 1.0], dtype=torch.float64))
    assert moments.var == pytest.approx(0.25 * 100 / 99, rel=1e-6)


def test_no_spread_divides_by_one():
    moments = RunningMoments()
    assert (moments.count, moments.var, moments.std) == (0, 0.0, 1.0)
    moments.update(torch.tensor([5.0]))
    assert (moments.var, moments.std) == (0.0, 1.0)
    moments.update(torch.full((7,), 5.0))
    assert moments.std == 1.0
    scaled = scale_scores(torch.tensor([5.0]), std=moments.std, clip=None)
    assert scaled.item() == 5.0


def test_resumed_from_json_equals_uninterrupted():
    first, second = torch.tensor([0.1, 0.7, -2.0]), torch.tensor([3.3, 0.2])
    whole, resumed = RunningMoments(), RunningMoments()
    whole.update(first)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for moments in (whole, resumed):
        moments.update(second)
    assert resumed.state_dict() == whole.state_dict()
    assert (resumed.count, resumed.mean, resumed.std) == (whole.count, whole.mean, whole.std)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused_and_leaves_no_trace(poison):
    moments = RunningMoments()
    moments.update(torch.tensor([1.0, 2.0]))
    before = moments.state_dict()
    with pytest.raises(ValueError, match="finite"):
        moments.update(torch.tensor([3.0, poison]))
    assert moments.state_dict() == before


def test_scaling_divides_then_clips_and_keeps_zero():
    scores = torch.tensor([-50.0, -3.0, 0.0, 4.0, 21.0])
    assert scale_scores(scores, std=2.0, clip=None).tolist() == [-25.0, -1.5, 0.0, 2.0, 10.5]
    assert scale_scores(scores, std=2.0, clip=10.0).tolist() == [-10.0, -1.5, 0.0, 2.0, 10.0]


def test_scaling_checks_its_coefficients():
    scores = torch.zeros(2)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="std"):
            scale_scores(scores, std=wrong, clip=None)
        with pytest.raises(ValueError, match="clip"):
            scale_scores(scores, std=1.0, clip=wrong)
