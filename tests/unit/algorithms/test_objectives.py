"""What all objectives have in common. Their own numbers are in test_apa, test_awr, test_ppo and test_value."""

import math

import pytest
import torch
from torch.testing import assert_close

from apa_cli.algorithms import apa_loss, awr_loss, bound_advantages, grpo_loss, ppo_loss, value_loss

OBJECTIVES = {
    # name -> (number of (B, T) inputs beside the mask, the objective)
    "apa": (3, lambda a, b, c, mask: apa_loss(a, b, c, mask, kl_lambda=0.4)),
    "apa_huber": (3, lambda a, b, c, mask: apa_loss(a, b, c, mask, kl_lambda=0.4, huber_delta=1.5)),
    "awr": (2, lambda a, b, mask: awr_loss(a, b, mask, kl_lambda=0.4)),
    "ppo": (3, lambda a, b, c, mask: ppo_loss(a, b, c, mask, clip_range=0.3)),
    "value": (2, lambda a, b, mask: value_loss(a, b, mask)),
    "value_clipped": (3, lambda a, b, c, mask: value_loss(a, b, mask, rollout_values=c, clip_range=0.5)),
}
MASK = torch.arange(5) < torch.tensor([5, 2, 0, 4])[:, None]  # (4, 5), 11 tokens count

every_objective = pytest.mark.parametrize(("inputs", "objective"), OBJECTIVES.values(), ids=OBJECTIVES.keys())


def draw(inputs):
    generator = torch.Generator().manual_seed(7)
    return list(torch.randn(inputs, *MASK.shape, generator=generator, dtype=torch.float64))


def value_and_gradient(objective, tensors, mask):
    trained = tensors[0].clone().requires_grad_()
    loss = objective(trained, *tensors[1:], mask)
    (gradient,) = torch.autograd.grad(loss, trained)
    return loss.detach(), gradient


@every_objective
def test_gradcheck(inputs, objective):
    tensors = draw(inputs)
    tensors[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda trained: objective(trained, *tensors[1:], MASK), tensors[0])


@every_objective
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_positions_change_neither_value_nor_gradient(inputs, objective, poison):
    tensors = draw(inputs)
    clean = value_and_gradient(objective, tensors, MASK)
    assert clean[0].isfinite()
    assert clean[1].abs().max() > 0
    for poisoned in range(inputs):
        dirty = [torch.where(MASK, x, poison) if i == poisoned else x for i, x in enumerate(tensors)]
        assert_close(value_and_gradient(objective, dirty, MASK), clean, rtol=0, atol=0)
    assert (clean[1][~MASK] == 0).all()


@every_objective
def test_mask_may_be_bool_or_numbers(inputs, objective):
    tensors = draw(inputs)
    expected = objective(*tensors, MASK)
    assert_close(objective(*tensors, MASK.float()), expected, rtol=0, atol=0)
    assert_close(objective(*tensors, MASK.long()), expected, rtol=0, atol=0)


@every_objective
def test_empty_mask_gives_zero(inputs, objective):
    loss, gradient = value_and_gradient(objective, draw(inputs), torch.zeros_like(MASK))
    assert loss.item() == 0.0
    assert (gradient == 0).all()


@every_objective
def test_uneven_micro_batches_weighted_by_tokens_equal_the_whole(inputs, objective):
    tensors = draw(inputs)
    loss, gradient = value_and_gradient(objective, tensors, MASK)
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]  # 5, 2 and 4 tokens
    total_loss, gradients = 0.0, []
    for rows in parts:
        share = int(MASK[rows].sum()) / 11
        part_loss, part_gradient = value_and_gradient(objective, [x[rows] for x in tensors], MASK[rows])
        total_loss += share * part_loss
        gradients.append(share * part_gradient)
    assert_close(total_loss, loss, rtol=0, atol=1e-12)
    assert_close(torch.cat(gradients), gradient, rtol=0, atol=1e-12)


@every_objective
def test_gradient_reaches_the_trained_tensor_only(inputs, objective):
    tensors = [x.requires_grad_() for x in draw(inputs)]
    objective(*tensors, MASK).backward()
    assert tensors[0].grad is not None
    assert all(x.grad is None for x in tensors[1:])


@every_objective
def test_any_wrong_shape_is_refused(inputs, objective):
    tensors = draw(inputs)
    for wrong in range(inputs):
        narrow = [x[:, :-1] if i == wrong else x for i, x in enumerate(tensors)]
        with pytest.raises(ValueError, match="shape"):
            objective(*narrow, MASK)
    with pytest.raises(ValueError, match="response_mask has shape"):
        objective(*tensors, MASK[:1])  # would broadcast


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_bad_coefficients_are_refused(wrong):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="kl_lambda"):
        apa_loss(x, x, x, x, kl_lambda=wrong)
    with pytest.raises(ValueError, match="huber_delta"):
        apa_loss(x, x, x, x, kl_lambda=1.0, huber_delta=wrong)
    with pytest.raises(ValueError, match="bound"):
        bound_advantages(x, wrong, 1)
    with pytest.raises(ValueError, match="clip_range"):
        grpo_loss(x, x, x, x, x, clip_range=wrong, kl_coef=0.0)
    with pytest.raises(ValueError, match="kl_lambda"):
        awr_loss(x, x, x, kl_lambda=wrong)
    with pytest.raises(ValueError, match="clip_range"):
        ppo_loss(x, x, x, x, clip_range=wrong)
    with pytest.raises(ValueError, match="clip_range"):
        value_loss(x, x, x, rollout_values=x, clip_range=wrong)
