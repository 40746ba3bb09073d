"""Dice and cross-entropy of log-probabilities: they are what their names say, and their gradient is bounded."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS

from embedmask_mmdet.models import DiceCrossEntropyLoss

LOG_PROBS = st.floats(-1e30, 0)


def loss_and_grad(log_prob, target, **arguments):
    log_prob = torch.as_tensor(log_prob, dtype=torch.float32).clone().requires_grad_()
    loss = DiceCrossEntropyLoss(reduction='none', **arguments)(log_prob, torch.as_tensor(target))
    loss.sum().backward()
    return loss.detach(), log_prob.grad


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.booleans())
@settings(deadline=None, max_examples=50)
def test_is_the_sum_of_both(seed, num, height, width, is_part):
    rng = torch.Generator().manual_seed(seed)
    prob = 0.01 + 0.98 * torch.rand(num, height, width, generator=rng)
    target = torch.rand(prob.shape, generator=rng)
    target = target if is_part else target < 0.6
    target[:, 0, 0] = 1
    entropy = torch.nn.functional.binary_cross_entropy(prob, target.float(), reduction='none').sum((1, 2))
    entropy = entropy / target.sum((1, 2)).clamp(min=4)
    dice = 1 - 2 * (prob * target).sum((1, 2)) / (prob.square() + target.float().square()).sum((1, 2))
    loss, _ = loss_and_grad(prob.log(), target)
    torch.testing.assert_close(loss, dice + entropy, rtol=1e-3, atol=2e-3)


@given(st.lists(st.tuples(LOG_PROBS, st.booleans()), min_size=1, max_size=9))
@settings(deadline=None, max_examples=200)
def test_is_finite_with_finite_gradients(pixels):
    log_prob, target = (torch.tensor([values]) for values in zip(*pixels))
    loss, grad = loss_and_grad(log_prob, target)
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    assert grad.isfinite().all()
    # More probability never hurts foreground, nor less of it background, up to Dice's rounding.
    assert (grad[target] <= 1e-6).all()
    assert (grad[~target] >= -1e-6).all()


@given(st.lists(st.tuples(LOG_PROBS, st.floats(1e-3, 1)), min_size=1, max_size=9))
@settings(deadline=None, max_examples=200)
def test_is_finite_with_finite_gradients_where_cells_belong_to_masks_in_part(cells):
    log_prob, target = (torch.tensor([values]) for values in zip(*cells))
    loss, grad = loss_and_grad(log_prob, target)
    assert loss.isfinite().all()
    assert grad.isfinite().all()


def test_is_least_where_probabilities_are_what_belongs_to_the_mask():
    target = torch.tensor([[0.1, 0.5, 0.9]])
    least, grad = loss_and_grad(target.log(), target)
    assert grad.abs().max() < 1e-3
    for prob in torch.rand(20, 1, 3, generator=torch.Generator().manual_seed(0)):
        assert loss_and_grad(prob.log(), target)[0] > least


def test_gradient_of_distant_foreground_shrinks_but_never_vanishes():
    distances = torch.tensor([1.0, 9.0, 100.0, 1e4, 1e8])
    grads = torch.stack([loss_and_grad(-distance.view(1, 1, 1), torch.ones(1, 1, 1) > 0)[1] for distance in distances])
    grads = -grads.flatten()
    assert (grads > 0).all()
    assert (grads[1:] <= grads[:-1]).all()
    # The embedding's gradient is this times the distance's root.
    assert (grads * distances.sqrt()).max() < 3


def test_masked_pixels_cost_nothing_and_no_number_shows():
    loss, grad = loss_and_grad([[-math.inf, -1e-9]], [[False, True]])
    assert loss < 1e-2
    assert grad[0, 0] == 0
    assert loss_and_grad([[math.nan, -1.0]], [[False, True]])[0].isnan()


@pytest.mark.parametrize('shape', [(0, 4, 4), (2, 4, 4)])
def test_no_instances_and_no_foreground(shape):
    loss = MODELS.build(dict(type='mmdet.DiceCrossEntropyLoss', loss_weight=0.5))
    log_prob = torch.full(shape, -30.0, requires_grad=True)
    total = loss(log_prob, torch.zeros(shape, dtype=torch.bool), torch.ones(shape[0]), avg_factor=2)
    total.backward()
    assert total.isfinite()
    assert log_prob.grad.isfinite().all()


def test_weights_of_instances_and_of_the_loss():
    loss = DiceCrossEntropyLoss(loss_weight=0.25)
    log_prob, target = -torch.rand(3, 5, 5), torch.rand(3, 5, 5) < 0.5
    each = loss(log_prob, target, reduction_override='none')
    weight = torch.tensor([1.0, 0.0, 2.0])
    torch.testing.assert_close(loss(log_prob, target, weight, avg_factor=4), (each * weight).sum() / 4)
    torch.testing.assert_close(loss(log_prob, target), each.mean())


def test_one_foreground_pixel_by_hand():
    # Cross-entropy is divided by at least 4 pixels, as if the mask had that many.
    prob = 0.5
    dice = 1 - 2 * prob / (prob**2 + 1)
    loss, grad = loss_and_grad([[math.log(prob)]], [[True]])
    assert loss.item() == pytest.approx(dice - math.log(prob) / 4, rel=1e-5)
    # d(dice)/d(log p) = -2 p (1 - p^2) / (1 + p^2)^2
    assert grad.item() == pytest.approx(-2 * prob * (1 - prob**2) / (1 + prob**2) ** 2 - 1 / 4, rel=1e-5)


@pytest.mark.parametrize('num_pixels', [3, 4, 5, 8])
def test_cross_entropy_is_divided_by_the_pixels_of_the_mask_but_at_least_4(num_pixels):
    loss, _ = loss_and_grad(torch.full((1, num_pixels), -2.0), torch.ones(1, num_pixels, dtype=torch.bool))
    prob = math.exp(-2)
    dice = 1 - 2 * prob / (prob**2 + 1)
    assert loss.item() == pytest.approx(dice + 2 * num_pixels / max(num_pixels, 4), rel=1e-5)


def test_dice_of_an_almost_empty_mask_is_bounded():
    # 0.01 of a pixel, met exactly: the squares sum up to 2e-4, and count as 1e-3.
    loss, _ = loss_and_grad([[math.log(0.01)]], [[0.01]])
    entropy = -0.01 * math.log(0.01) - 0.99 * math.log(0.99)
    assert loss.item() == pytest.approx(1 - 2 * 1e-4 / 1e-3 + entropy / 4, rel=1e-4)
    # Squares above the bound count as they are.
    loss, _ = loss_and_grad([[math.log(0.1)]], [[0.1]])
    assert loss.item() == pytest.approx(-(0.1 * math.log(0.1) + 0.9 * math.log(0.9)) / 4, rel=1e-4)


@pytest.mark.parametrize(
    'log_prob, entropy', [(-9.9, 9.9), (-10.0, 10.0), (-11.0, 10 + 10 * math.log(1.1)), (-1e4, 10 + 10 * math.log(1e3))]
)
def test_foreground_costs_its_distance_up_to_10_and_then_its_logarithm(log_prob, entropy):
    loss, grad = loss_and_grad([[log_prob]], [[True]])
    dice = 1 - 2 * math.exp(log_prob) / (1 + math.exp(2 * log_prob))
    assert loss.item() == pytest.approx(dice + entropy / 4, rel=1e-4)
    assert grad.item() == pytest.approx((-1 if log_prob >= -10 else 10 / log_prob) / 4, abs=2e-4)


@pytest.mark.parametrize(
    'log_prob, entropy, slope',
    [
        (math.log(0.5), math.log(2), 1.0),
        (math.log(2e-6), 2e-6, 2e-6),
        (math.log(5e-7), 0.0, 0.0),  # too unlikely to be taken for foreground: left out
        (-1e-6, 10.0, 0.0),  # as wrong as counts: without a gradient
        (0.0, 10.0, 0.0),
    ],
)
def test_background_costs_its_cross_entropy_up_to_10(log_prob, entropy, slope):
    # Dice is 1 where nothing is foreground, and has no gradient.
    loss, grad = loss_and_grad([[log_prob]], [[False]])
    assert loss.item() - 1 == pytest.approx(entropy / 4, rel=1e-3, abs=1e-7)
    assert grad.item() == pytest.approx(slope / 4, rel=0.02, abs=1e-12)


def test_each_instance_has_its_own_loss():
    rng = torch.Generator().manual_seed(0)
    log_prob, target = -3 * torch.rand(4, 3, 5, generator=rng), torch.rand(4, 3, 5, generator=rng) < 0.5
    losses, _ = loss_and_grad(log_prob, target)
    alone = [loss_and_grad(log_prob[[i]], target[[i]])[0] for i in range(4)]
    torch.testing.assert_close(losses, torch.cat(alone))


def test_weight_and_average_are_1_and_mean_unless_set():
    log_prob, target = torch.full((2, 1, 5), -1.0), torch.ones(2, 1, 5, dtype=torch.bool)
    log_prob[1] = -2
    each = loss_and_grad(log_prob, target)[0]
    torch.testing.assert_close(DiceCrossEntropyLoss()(log_prob, target), each.mean())
