"""One softmax gives the draw, its log-prob and the entropy; what is drawn follows the probabilities exactly."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from apa_cli.config.schema import GenerationConfig
from apa_cli.rollouts.backends.choice import CHUNK, RACE_VOCABULARY, TokenChooser, draw, inverse_cdf

FALSE_ALARM = 1e-4


def chooser(*, eos=(), greedy=False, **settings):
    return TokenChooser(GenerationConfig(**settings), list(eos), greedy=greedy)


def test_small_vocabularies_draw_what_multinomial_draws():
    probabilities = torch.rand(64, RACE_VOCABULARY).softmax(-1)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = torch.multinomial(probabilities, 1).squeeze(1)
        torch.manual_seed(seed)
        noise = chooser().noise(64, RACE_VOCABULARY, torch.device("cpu"))
        assert torch.equal(draw(probabilities, noise), expected)


def test_large_vocabularies_need_one_number_a_row():
    assert chooser().noise(64, RACE_VOCABULARY + 1, torch.device("cpu")).shape == (64,)
    assert chooser(greedy=True).noise(64, 10, torch.device("cpu")) is None


def test_the_inverse_of_a_distribution_worked_by_hand():
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    for u, index in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (1 - 2**-53, 4)):
        assert inverse_cdf(p[None], torch.tensor([u], dtype=torch.float64)).item() == index


@pytest.mark.parametrize("size", [1, 7, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 100])
def test_the_inverse_never_gives_what_has_no_probability(size):
    torch.manual_seed(size)
    p = torch.rand(2000, size) * (torch.rand(2000, size) < 0.1)
    p[torch.arange(2000), torch.randint(size, (2000,))] = 1e-20
    for u in (0.0, 0.5, 1 - 2**-53):
        index = inverse_cdf(p, torch.full((2000,), u, dtype=torch.float64))
        assert (p.gather(1, index[:, None]) > 0).all()


def test_rare_tokens_of_a_large_vocabulary_are_drawn_as_often_as_they_should_be():
    """49,999 tokens share 1 % evenly; a float32 cumulative sum near 1 has steps of 6e-8, and each has 2e-7."""
    V, n = 50_000, 100_000
    p = torch.full((1, V), 0.01 / (V - 1))
    p[0, 0] = 0.99
    torch.manual_seed(1)
    drawn = torch.cat([inverse_cdf(p.expand(2000, V), torch.rand(2000, dtype=torch.float64)) for _ in range(n // 2000)])
    rare = drawn[drawn > 0]
    assert stats.binomtest(len(rare), n, 0.01).pvalue > FALSE_ALARM
    cells = torch.bincount((rare - 1) * 20 // (V - 1), minlength=20)
    assert stats.chisquare(cells.numpy()).pvalue > FALSE_ALARM


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_in_float64(temperature):
    torch.manual_seed(2)
    logits = torch.randn(32, 5000) * 4 + 60
    logits[:, ::3] = -torch.inf
    logp = (logits.double() / temperature).log_softmax(-1)
    p = logp.exp()
    choose = chooser(temperature=temperature, top_k=5)
    choice = choose(logits.clone(), choose.noise(32, 5000, logits.device), 0)
    assert_close(choice.logprobs.double(), logp.gather(1, choice.ids[:, None])[:, 0], atol=1e-5, rtol=0)
    assert_close(choice.entropy.double(), -torch.where(p > 0, p * logp, 0.0).sum(-1), atol=1e-5, rtol=0)
    assert (choice.ids % 3 != 0).all()


def test_an_end_that_may_not_come_yet_is_not_chosen_but_counts_in_the_softmax():
    logits = torch.tensor([[0.0, math.log(3), math.log(4)]])
    for greedy in (True, False):
        choose = chooser(eos=[2], greedy=greedy, min_new_tokens=2, top_k=1)
        choice = choose(logits.clone(), choose.noise(1, 3, logits.device), 1)
        assert choice.ids.tolist() == [1]
        assert_close(choice.logprobs, torch.tensor([math.log(3 / 8)]))
        later = choose(logits.clone(), choose.noise(1, 3, logits.device), 2)
        assert later.ids.tolist() == [2]


def test_greedy_takes_the_first_of_the_largest_logits_before_temperature():
    logits = torch.tensor([[1.0, 1.0000001, 1.0]]) * 1e3
    choose = chooser(greedy=True, temperature=3.0)
    assert choose(logits.clone(), None, 0).ids.tolist() == [int(logits.argmax())]


@pytest.mark.parametrize("vocabulary", [40, RACE_VOCABULARY + 100])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.5}])
def test_logits_that_are_not_finite_leave_other_rows_alone(vocabulary, bad, settings):
    """Some token, and NaN for its log-prob and entropy; the rows beside it draw as if it were not there."""
    logits = torch.randn(4, vocabulary)
    choose = chooser(**settings)
    noise = choose.noise(4, vocabulary, logits.device)
    good = choose(logits.clone(), noise, 0)
    logits[1, 7] = bad
    choice = choose(logits, noise, 0)
    assert 0 <= choice.ids[1] < vocabulary
    assert choice.logprobs[1].isnan()
    assert choice.entropy[1].isnan()
    for row in (0, 2, 3):
        assert choice.ids[row] == good.ids[row]
        assert choice.logprobs[row] == good.logprobs[row]
