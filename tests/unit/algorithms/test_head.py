"""The head taken in blocks gives the numbers of the plain formula: logits, log-softmax, one entry."""

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from apa_cli.algorithms import head, head_logits, head_logprobs, response_logprobs

SHAPES = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "scale": {"scale": 0.25, "temperature": 1.3},
    "softcap": {"softcap": 2.0},
    "everything": {"softcap": 1.5, "scale": 0.5, "temperature": 0.8},
}
BLOCKS = {
    "one block, kept": (10_000, 1 << 20, 1 << 30),
    "one block, made anew": (10_000, 1 << 20, 0),
    "many blocks, kept": (4, 12, 1 << 30),
    "many blocks, made anew": (4, 12, 0),
    "many blocks, some kept": (4, 12, 300),
    "one token, one word": (1, 1, 100),
}


@pytest.fixture(params=BLOCKS)
def blocks(request, monkeypatch):
    tokens, logits, keep = BLOCKS[request.param]
    monkeypatch.setattr(head, "TOKENS", tokens)
    monkeypatch.setattr(head, "CPU_BLOCK", logits)
    monkeypatch.setitem(head.KEEP_BYTES, "cpu", keep)


def tensors(tokens=11, width=5, vocabulary=17, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    hidden, weight, bias, upstream = (
        torch.randn(*shape, generator=generator, dtype=dtype)
        for shape in ((tokens, width), (vocabulary, width), (vocabulary,), (tokens,))
    )
    ids = torch.randint(vocabulary, (tokens,), generator=generator)
    ids[0], ids[-1] = vocabulary - 1, 0
    return hidden, weight, bias, ids, upstream


def plain(hidden, weight, bias, ids, temperature=1.0, scale=1.0, softcap=None):
    logits = hidden @ weight.t()
    if bias is not None:
        logits = logits + bias
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits / temperature).log_softmax(-1)[torch.arange(len(ids)), ids]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("trained", ["hidden weight bias", "hidden weight", "weight", "bias", "hidden"])
def test_values_and_gradients_are_those_of_the_formula(blocks, shape, trained):
    hidden, weight, bias, ids, upstream = tensors()
    named = {"hidden": hidden, "weight": weight, "bias": bias}
    wanted = [named[name].requires_grad_() for name in trained.split()]
    expected = plain(hidden, weight, bias, ids, **shape)
    actual = head_logprobs(hidden, weight, bias, ids, **shape)
    assert_close(actual, expected, rtol=0, atol=1e-12)
    expected_grads = torch.autograd.grad((expected * upstream).sum(), wanted)
    actual_grads = torch.autograd.grad((actual * upstream).sum(), wanted)
    assert_close(actual_grads, expected_grads, rtol=0, atol=1e-12)


def test_by_hand():
    # raw logits log 1, log 3, log 4 for one token and log 2, log 2, log 12 for the other
    weight = torch.tensor([[1.0, 2.0], [3.0, 2.0], [4.0, 12.0]], dtype=torch.float64).log()
    hidden = torch.eye(2, dtype=torch.float64)
    actual = head_logprobs(hidden, weight, None, torch.tensor([1, 0]))
    assert_close(actual.exp(), torch.tensor([3 / 8, 2 / 16], dtype=torch.float64))
    # halving the logits takes the root of the odds: 1 : √3 : 2, and a temperature of 2 does the same
    root = math.sqrt(3) / (3 + math.sqrt(3))
    for shape in ({"scale": 0.5}, {"temperature": 2.0}):
        actual = head_logprobs(hidden[:1], weight, None, torch.tensor([1]), **shape)
        assert_close(actual.exp(), torch.tensor([root], dtype=torch.float64))


def test_the_values_do_not_depend_on_what_is_trained(blocks):
    hidden, weight, bias, ids, _ = tensors(dtype=torch.float32)
    with torch.no_grad():
        expected = head_logprobs(hidden, weight, bias, ids)
    for asks in ((True, True), (True, False), (False, True)):
        hidden.requires_grad_(asks[0]), weight.requires_grad_(asks[1])
        assert torch.equal(head_logprobs(hidden, weight, bias, ids), expected)


def test_float32_errs_as_little_as_the_formula_does(blocks):
    hidden, weight, bias, ids, upstream = tensors(tokens=12, width=32, vocabulary=100, dtype=torch.float32)
    wanted = [t.requires_grad_() for t in (hidden, weight, bias)]
    exact = plain(hidden.double(), weight.double(), bias.double(), ids)
    actual = head_logprobs(hidden, weight, bias, ids)
    assert_close(actual.double(), exact, rtol=0, atol=2e-5)  # logits of about 20 in float32
    grads = torch.autograd.grad((actual * upstream).sum(), wanted)
    assert_close(grads, torch.autograd.grad((exact * upstream).sum(), wanted), rtol=1e-5, atol=1e-5)


def test_products_in_bfloat16_and_the_softmax_in_float32(blocks):
    hidden, weight, _, ids, upstream = tensors(tokens=12, width=32, vocabulary=100, dtype=torch.float32)
    weight.requires_grad_()
    half = hidden.bfloat16().requires_grad_()
    actual = head_logprobs(half, weight, None, ids)
    assert actual.dtype == torch.float32
    logits = (half @ weight.bfloat16().t()).float()
    assert_close(actual, logits.log_softmax(-1)[torch.arange(12), ids], rtol=0, atol=1e-5)
    grads = torch.autograd.grad((actual * upstream).sum(), (half, weight))
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]
    exact = torch.autograd.grad(
        (plain(half.double(), weight.double(), None, ids) * upstream).sum(), (half, weight), allow_unused=True
    )
    for got, expected in zip(grads, exact, strict=True):
        assert (got.float() - expected.float()).norm() < 0.03 * expected.float().norm()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, list | tuple) else [found]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.numel = max(self.numel, tensor.numel())
        return found


@pytest.mark.parametrize("trained", [True, False])
def test_nothing_is_as_large_as_tokens_times_vocabulary(monkeypatch, trained):
    monkeypatch.setattr(head, "CPU_BLOCK", 1 << 10)
    monkeypatch.setitem(head.KEEP_BYTES, "cpu", 0)
    hidden, weight, bias, ids, upstream = tensors(tokens=200, width=4, vocabulary=1000, dtype=torch.float32)
    hidden.requires_grad_(), weight.requires_grad_(trained)
    with Largest() as largest:
        (head_logprobs(hidden, weight, bias, ids) * upstream).sum().backward()
    assert largest.numel <= 1000 * 4


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(head, "CPU_BLOCK", 1 << 10)
    monkeypatch.setitem(head.KEEP_BYTES, "cpu", 10_000)
    hidden, weight, _, ids, _ = tensors(tokens=200, width=4, vocabulary=1000, dtype=torch.float32)
    kept = head_logprobs(hidden, weight.requires_grad_(), None, ids).grad_fn.kept
    assert 0 < sum(t.untyped_storage().nbytes() for t in kept.values()) <= 10_000


def test_no_tokens_at_all():
    hidden, weight, bias, ids, _ = tensors()
    weight.requires_grad_()
    logprobs = head_logprobs(hidden[:0], weight, bias, ids[:0])
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("shape", [{}, {"scale": 0.3}, {"softcap": 1.2}], ids=str)
def test_logits_are_what_the_log_probs_are_made_of(shape):
    hidden, weight, bias, ids, _ = tensors()
    logits = head_logits(hidden, weight, bias, **shape)
    again = response_logprobs(logits[None], ids[None], temperature=0.9)[0]
    assert_close(head_logprobs(hidden, weight, bias, ids, temperature=0.9, **shape), again)


def test_arguments_are_checked():
    hidden, weight, bias, ids, _ = tensors()
    with pytest.raises(ValueError, match="hidden"):
        head_logprobs(hidden[:, :2], weight, bias, ids)
    with pytest.raises(ValueError, match="hidden"):
        head_logits(hidden[None], weight, bias)
    with pytest.raises(ValueError, match="bias"):
        head_logprobs(hidden, weight, bias[:2], ids)
    with pytest.raises(ValueError, match="ids"):
        head_logprobs(hidden, weight, bias, ids[1:])
    for name in ("temperature", "scale", "softcap"):
        for wrong in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=name):
                head_logprobs(hidden, weight, bias, ids, **{name: wrong})
