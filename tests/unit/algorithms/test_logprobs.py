import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import exact_kl, position_ids, response_logits, response_logprobs, token_entropy

NAN, INF = math.nan, math.inf


def softmax(row, temperature=1.0):
    weights = [math.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_position_ids_start_at_the_first_attended_token():
    attention_mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert position_ids(attention_mask).tolist() == expected
    assert position_ids(attention_mask.bool()).tolist() == expected
    assert position_ids(attention_mask.float()).dtype == torch.int64


def test_response_token_t_is_predicted_from_position_p_plus_t_minus_one():
    # A toy model whose logits say where they were computed: entry 0 is the position, entry 1 the row.
    prompt, response = 4, 3
    logits = torch.stack(
        [torch.arange(prompt + response).expand(2, -1), torch.arange(2)[:, None].expand(-1, prompt + response)], dim=-1
    )
    taken = response_logits(logits, response)
    assert taken[..., 0].tolist() == [[prompt + t - 1 for t in range(response)]] * 2
    assert taken[..., 1].tolist() == [[0] * response, [1] * response]
    assert_close(response_logits(logits[:, -response - 1 :], response), taken)


def test_response_logits_is_a_view_and_checks_its_arguments():
    logits = torch.zeros(2, 5, 3)
    assert response_logits(logits, 4).data_ptr() == logits.data_ptr()
    with pytest.raises(ValueError, match="needs at least 6"):
        response_logits(logits, 5)
    with pytest.raises(ValueError, match="response_length"):
        response_logits(logits, 0)
    with pytest.raises(ValueError, match="B, L, V"):
        response_logits(logits[0], 2)


def test_logprobs_by_hand():
    # odds 1 : 3 : 4 and 2 : 2 : 12
    logits = torch.tensor([[[1.0, 3.0, 4.0], [2.0, 2.0, 12.0]]], dtype=torch.float64).log()
    actual = response_logprobs(logits, torch.tensor([[1, 0]]))
    assert_close(actual, torch.tensor([[3 / 8, 2 / 16]], dtype=torch.float64).log(), rtol=0, atol=1e-9)
    # at temperature 1/2 the odds are squared: 1 : 9 : 16 and 4 : 4 : 144
    actual = response_logprobs(logits, torch.tensor([[1, 0]]), temperature=0.5)
    assert_close(actual, torch.tensor([[9 / 26, 4 / 152]], dtype=torch.float64).log(), rtol=0, atol=1e-9)


def test_logprobs_gradcheck_through_the_shift():
    full = random_logits(3, 6, 5).requires_grad_()
    ids = torch.tensor([[0, 4, 2], [1, 1, 3], [2, 0, 0]])
    assert torch.autograd.gradcheck(lambda z: response_logprobs(response_logits(z, 3), ids, temperature=0.7), full)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 300), (3, 50), (200, 3)])
def test_chunks_do_not_show(batch, tokens):
    logits = random_logits(batch, tokens, 4).requires_grad_()
    ids = torch.arange(batch * tokens).reshape(batch, tokens) % 4
    upstream = random_logits(batch, tokens, seed=1)
    reference = (logits / 0.8).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    actual = response_logprobs(logits, ids, temperature=0.8)
    assert_close(actual, reference)
    (expected_grad,) = torch.autograd.grad((reference * upstream).sum(), logits)
    (actual_grad,) = torch.autograd.grad((actual * upstream).sum(), logits)
    assert_close(actual_grad, expected_grad)
    entropies = [token_entropy(logits, chunk=chunk) for chunk in (1, 7, 10_000)]
    assert_close(entropies[0], entropies[1])
    assert_close(entropies[0], entropies[2])
    divergences = [exact_kl(logits, logits.flip(-1), chunk=chunk) for chunk in (1, 7, 10_000)]
    assert_close(divergences[0], divergences[1])
    assert_close(divergences[0], divergences[2])


def test_half_precision_logits_are_computed_in_float32():
    logits = random_logits(2, 3, 50).bfloat16().requires_grad_()
    ids = torch.tensor([[0, 10, 20], [30, 40, 49]])
    actual = response_logprobs(logits, ids, temperature=0.9)
    reference = (logits.double() / 0.9).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    assert actual.dtype == torch.float32
    assert_close(actual.double(), reference, rtol=1e-5, atol=1e-5)  # float32; bfloat16 arithmetic errs by 1e-2
    actual.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert token_entropy(logits).dtype == torch.float32
    assert exact_kl(logits, logits).dtype == torch.float32


def test_logits_of_an_uncounted_token_get_no_gradient():
    logits = torch.tensor([[[1.0, 2.0], [NAN, INF]]], dtype=torch.float64, requires_grad=True)
    logprobs = response_logprobs(logits, torch.tensor([[0, 1]]))
    torch.where(torch.tensor([[True, False]]), logprobs, 0.0).sum().backward()
    first = 1 / (1 + math.exp(1.0))
    expected = torch.tensor([[[1 - first, first - 1], [0.0, 0.0]]], dtype=torch.float64)
    assert_close(logits.grad, expected, rtol=0, atol=1e-9)


def test_entropy_by_brute_force_and_not_the_mean_of_sampled_surprise():
    rows = [[0.3, -1.2, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]]
    entropy = token_entropy(torch.tensor([rows], dtype=torch.float64), temperature=1.3)
    expected = [-sum(p * math.log(p) for p in softmax(row, 1.3)) for row in rows]
    assert_close(entropy, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-9)
    assert entropy[0, 1].item() == pytest.approx(math.log(4), abs=1e-9)
    # −log π of one sampled token is another number, whichever token was sampled
    surprise = [-math.log(p) for p in softmax(rows[0], 1.3)]
    assert all(abs(s - expected[0]) > 0.05 for s in surprise)


def test_impossible_tokens_add_nothing_to_the_entropy():
    logits = torch.tensor([[[0.0, -INF, 0.0], [0.0, -INF, -INF]]], dtype=torch.float64)
    expected = torch.tensor([[math.log(2), 0.0]], dtype=torch.float64)
    assert_close(token_entropy(logits), expected, rtol=0, atol=1e-9)


def test_exact_kl_by_brute_force():
    policy, reference = [0.3, -1.2, 2.0, 0.0], [1.0, 0.5, -0.5, 0.2]
    p, q = softmax(policy, 0.6), softmax(reference, 0.6)
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    as_logits = [torch.tensor([[row]], dtype=torch.float64) for row in (policy, reference)]
    actual = exact_kl(*as_logits, temperature=0.6)
    assert_close(actual, torch.tensor([[expected]], dtype=torch.float64), rtol=0, atol=1e-9)
    assert abs(exact_kl(*as_logits[::-1], temperature=0.6).item() - expected) > 0.1  # it has a direction


def test_exact_kl_of_impossible_tokens():
    policy = torch.tensor([[[0.0, 0.0, -INF], [0.0, 0.0, -INF], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    reference = torch.tensor([[[0.0, 0.0, -INF], [0.0, 0.0, 0.0], [0.0, 0.0, -INF]]], dtype=torch.float64)
    expected = torch.tensor([[0.0, math.log(3 / 2), INF]], dtype=torch.float64)
    assert_close(exact_kl(policy, reference), expected, rtol=0, atol=1e-9)


def test_metrics_of_the_whole_vocabulary_carry_no_gradient():
    logits = random_logits(1, 2, 3).requires_grad_()
    assert not token_entropy(logits).requires_grad
    assert not exact_kl(logits, logits).requires_grad


def test_arguments_are_checked():
    logits, ids = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    for wrong_ids in (ids[:, :2], ids[:1], ids[0]):
        with pytest.raises(ValueError, match="response_ids"):
            response_logprobs(logits, wrong_ids)
    with pytest.raises(ValueError, match="reference_logits"):
        exact_kl(logits, logits[:, :2])
    with pytest.raises(ValueError, match="B, T, V"):
        token_entropy(logits[0])
    for temperature in (0.0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="temperature"):
            response_logprobs(logits, ids, temperature=temperature)
        with pytest.raises(ValueError, match="temperature"):
            token_entropy(logits, temperature=temperature)
        with pytest.raises(ValueError, match="temperature"):
            exact_kl(logits, logits, temperature=temperature)
    with pytest.raises(ValueError, match="chunk"):
        token_entropy(logits, chunk=0)
