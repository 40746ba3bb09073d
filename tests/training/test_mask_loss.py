"""The mask loss equals its plain formulation, is finite for every input, and costs no loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode

from embedmask_mmdet.analysis import plain_loss
from embedmask_mmdet.models import EmbedMaskMaskHead
from embedmask_mmdet.models.losses.lovasz_hinge import LovaszHingeLoss, has_error, hinge_errors, lovasz_hinge
from tests.reference import DATA

# No foreground pixel's error equals a background pixel's: which of two such comes first would be anybody's choice.
LOG_PROBS = [0.0, -1e-8, -1e-5, -0.1, -0.31326, -0.4, -1.0, -1.31326, -5.0, -20.7, -30.0, -1e5, -1e30]


@st.composite
def maps(draw):
    """Log-probabilities, many of them equal, and targets."""
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, 8), st.integers(1, 8)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = draw(st.lists(st.sampled_from(LOG_PROBS), min_size=1, max_size=8, unique=True))
    target = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return torch.tensor(rng.choice(values, shape), dtype=torch.float32), torch.from_numpy(target)


def value_and_grad(loss, log_prob, target):
    log_prob = log_prob.clone().requires_grad_()
    losses = loss(log_prob, target)
    losses.sum().backward()
    return losses.detach(), log_prob.grad


def summed_over_ties(grad, log_prob, target):
    """Gradients of one instance's equal pixels, of which any may come first in the order, together."""
    summed = grad.flatten(1).clone()
    for row, values, side in zip(summed, log_prob.flatten(1), target.flatten(1)):
        same = (values[:, None] == values) & (side[:, None] == side)
        row.copy_(same.to(row.dtype) @ row)
    return summed


@given(maps())
@settings(deadline=None, max_examples=200)
def test_equals_the_plain_formulation(case):
    log_prob, target = case
    expected, expected_grad = value_and_grad(plain_loss.lovasz_hinge, log_prob.double(), target)
    loss, grad = value_and_grad(LovaszHingeLoss(loss_weight=1.0, reduction='none'), log_prob, target)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        summed_over_ties(grad, log_prob, target).double(),
        summed_over_ties(expected_grad, log_prob, target),
        rtol=1e-3,
        atol=1e-5,
    )


def test_equals_the_plain_formulation_on_the_references_map():
    arrays = np.load(DATA / 'lovasz.npz')
    log_prob, target = torch.from_numpy(arrays['prob']).log(), torch.from_numpy(arrays['target'])
    expected, expected_grad = value_and_grad(plain_loss.lovasz_hinge, log_prob, target)
    loss, grad = value_and_grad(LovaszHingeLoss(loss_weight=1.0, reduction='none'), log_prob, target)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    # Errors that float32 cannot tell apart may swap places.
    assert (grad - expected_grad).abs().max() < 1e-3 * expected_grad.abs().max()


def make_case(seed=0, counts=(3, 2), grid=(12, 16), margin=0.3):
    """Pixel embeddings, positives and ground truth of one image for each of ``counts``."""
    rng = torch.Generator().manual_seed(seed)
    height, width = grid[0] * 8 - 5, grid[1] * 8 - 3
    pixel_embeds = torch.randn(len(counts), 16, *grid, generator=rng)
    positive_infos, gts = [], []
    for count in counts:
        masks = np.zeros((count + 1, height, width), np.uint8)
        for mask in masks:
            y, x = (int(torch.randint(size, (1,), generator=rng)) for size in (height, width))
            mask[y : y + 30, x : x + 40] = 1
        gts.append(InstanceData(masks=BitmapMasks(masks, height, width)))
        positive_infos.append(
            InstanceData(
                gt_inds=torch.arange(1, count + 1),
                proposal_embed=torch.randn(count, 16, generator=rng).requires_grad_(),
                proposal_margin=(margin * torch.rand(count, 16, generator=rng)).requires_grad_(),
            )
        )
    return pixel_embeds.requires_grad_(), positive_infos, gts


def join(positive_infos):
    """Join the positives of all images, as the mask head takes them."""
    for img, info in enumerate(positive_infos):
        info.img_inds = torch.full_like(info.gt_inds, img)
    return InstanceData.cat(positive_infos)


def leaves(pixel_embeds, positive_infos):
    return [pixel_embeds, *(info[name] for info in positive_infos for name in ('proposal_embed', 'proposal_margin'))]


def head(**loss_mask):
    return EmbedMaskMaskHead(in_channels=32, feat_channels=32, loss_mask=dict(type='LovaszHingeLoss', **loss_mask))


@pytest.mark.parametrize('counts', [(3, 2), (0, 2), (1,), (0, 0)])
@pytest.mark.parametrize('margin', [0.05, 0.3, 5.0])
def test_whole_mask_loss_equals_the_plain_formulation(counts, margin):
    pixel_embeds, positive_infos, gts = make_case(counts=counts, margin=margin)
    loss = head().loss_by_feat(pixel_embeds, join(positive_infos), gts)['loss_mask']
    masks = [torch.from_numpy(gt.masks.masks) for gt in gts]
    expected = plain_loss.mask_loss(pixel_embeds, masks, positive_infos)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    inputs = leaves(pixel_embeds, positive_infos)
    grads = torch.autograd.grad(loss, inputs)
    expected_grads = torch.autograd.grad(expected, inputs, allow_unused=True)
    for grad, wanted in zip(grads, expected_grads):
        wanted = torch.zeros_like(grad) if wanted is None else wanted
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()) if len(grad) else 0)


def test_polygons_and_bitmaps_cost_the_same():
    pixel_embeds, positive_infos, gts = make_case(counts=(1,))
    polygon = np.array([10.0, 10, 60, 10, 60, 50, 10, 50])
    polygons = PolygonMasks([[polygon]] * 2, *gts[0].masks.masks.shape[1:])
    losses = [
        head().loss_by_feat(pixel_embeds, join(positive_infos), [InstanceData(masks=masks)])['loss_mask']
        for masks in (polygons, BitmapMasks(polygons.to_ndarray(), *polygons.to_ndarray().shape[1:]))
    ]
    assert losses[0] == losses[1]


class OpCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def count_ops(counts):
    pixel_embeds, positive_infos, gts = make_case(counts=counts)
    with OpCounter() as counter:
        head().loss_by_feat(pixel_embeds, join(positive_infos), gts)['loss_mask'].backward()
    return counter.names


def test_no_operation_is_repeated_for_each_instance():
    few, many = count_ops((2, 2)), count_ops((40, 2))
    assert len(few) == len(many)
    # What makes the host wait for the device.
    assert sum('nonzero' in name or '_local_scalar_dense' in name for name in many) <= 1


EXTREMES = [0.0, 1e-6, 1.0, 1e4]


@given(
    proposal=st.sampled_from(EXTREMES),
    pixel=st.sampled_from(EXTREMES),
    margin=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    foreground=st.sampled_from(['pixel', 'image', 'nothing', 'box']),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    autocast=st.sampled_from([None, torch.float16, torch.bfloat16]),
    keep_saturated_grad=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_finite_always(proposal, pixel, margin, foreground, dtype, autocast, keep_saturated_grad):
    rng = torch.Generator().manual_seed(0)
    masks = np.zeros((2, 64, 64), np.uint8)
    masks[:, dict(pixel=slice(5, 6), image=slice(None), nothing=slice(0), box=slice(4, 30))[foreground]] = 1
    if foreground == 'pixel':
        masks[:, :, 6:] = masks[:, :, :5] = 0
    pixel_embeds = (pixel * torch.randn(1, 16, 8, 8, generator=rng)).to(dtype).requires_grad_()
    # One proposal sits on a pixel's embedding, where the probability is exactly 1.
    embeds = torch.stack([pixel_embeds.detach()[0, :, 2, 3], (proposal * torch.randn(16, generator=rng)).to(dtype)])
    info = InstanceData(
        gt_inds=torch.arange(2),
        proposal_embed=embeds.requires_grad_(),
        proposal_margin=torch.full((2, 16), margin, dtype=torch.float32).requires_grad_(),
    )
    gt = InstanceData(masks=BitmapMasks(masks, 64, 64))
    with torch.autocast('cpu', dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        loss = head(keep_saturated_grad=keep_saturated_grad).loss_by_feat(pixel_embeds, join([info]), [gt])['loss_mask']
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    grads = torch.autograd.grad(loss, leaves(pixel_embeds, [info]))
    # A gradient that float16 cannot hold is infinite in it, as GradScaler expects.
    assert all(grad.isfinite().all() or dtype == torch.float16 for grad in grads)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    pixel_embeds, positive_infos, gts = make_case()
    expected = head().loss_by_feat(pixel_embeds, join(positive_infos), gts)['loss_mask']
    with torch.autocast('cpu', dtype=dtype):
        loss = head().loss_by_feat(pixel_embeds, join(positive_infos), gts)['loss_mask']
    assert loss == expected


@pytest.mark.parametrize('log_prob', [0.0, -1e30, -math.inf])
@pytest.mark.parametrize('foreground', [False, True])
def test_certain_probabilities(log_prob, foreground):
    target = torch.full((1, 4, 4), foreground)
    loss, grad = value_and_grad(lovasz_hinge, torch.full(target.shape, log_prob), target)
    wrong = foreground != (log_prob == 0)
    assert float(loss) == pytest.approx(1 + math.log(1e9) if wrong else 0, rel=1e-6)
    assert grad.isfinite().all()


def test_broken_embeddings_show_in_the_loss():
    log_prob = torch.full((2, 4, 4), -30.0)
    log_prob[1, 2, 2] = math.nan
    target = torch.zeros(2, 4, 4, dtype=torch.bool)
    losses = LovaszHingeLoss(reduction='none')(log_prob, target)
    assert losses[0] == 0
    assert losses[1].isnan()


def test_saturated_pixels_keep_their_gradient_on_request():
    log_prob = torch.tensor([[[-1.0, -25.0, -1e6, -2.0]]])
    target = torch.tensor([[[True, True, True, False]]])
    options = dict(type='LovaszHingeLoss', loss_weight=1.0, reduction='none')
    loss, grad = value_and_grad(MODELS.build(options), log_prob, target)
    kept_loss, kept_grad = value_and_grad(MODELS.build(dict(options, keep_saturated_grad=True)), log_prob, target)
    torch.testing.assert_close(loss, kept_loss)
    assert grad[0, 0, 1:3].tolist() == [0, 0]
    torch.testing.assert_close(kept_grad[0, 0, 1:3], torch.tensor([-1 / 3, -1 / 3]))
    assert grad[0, 0, 0] == kept_grad[0, 0, 0] != 0


def test_saturated_pixels_are_ordered_by_their_own_distance():
    # Both foreground pixels are farther off than the background pixel, which adds nothing after them.
    log_prob = torch.tensor([[[0.0, -25.0, -1e6]]])
    target = torch.tensor([[[False, True, True]]])
    loss = LovaszHingeLoss(loss_weight=1.0, reduction='none', keep_saturated_grad=True)
    losses, grad = value_and_grad(loss, log_prob, target)
    assert losses.item() == pytest.approx(1 - math.log(1e-9), rel=1e-6)
    torch.testing.assert_close(grad[0, 0], torch.tensor([0.0, -0.5, -0.5]))


def test_pixels_on_their_side_by_a_margin_are_left_out():
    prob = torch.linspace(0.001, 0.999, 999)
    for target in (torch.ones_like(prob) > 0, torch.zeros_like(prob) > 0):
        # sigmoid(1) is 0.731, sigmoid(-1) is 0.269.
        assert torch.equal(has_error(prob.log(), target), prob < 0.7311 if target[0] else prob > 0.2689)
        assert torch.equal(has_error(prob.log(), target), hinge_errors(prob.log(), target) > 0)


def test_one_pixel_on_each_side_by_hand():
    # Logits are 0: both errors are 1. Together the pixels cost the whole Jaccard loss, the background one half of it.
    log_prob, target = torch.full((1, 1, 2), math.log(0.5)), torch.tensor([[[True, False]]])
    assert LovaszHingeLoss()(log_prob, target).item() == pytest.approx(0.5)
    assert LovaszHingeLoss(loss_weight=1.0)(log_prob, target).item() == pytest.approx(1.0)


def test_an_instance_without_foreground_costs_its_worst_pixel():
    log_prob = torch.tensor([[0.5, 0.9, 0.2]]).log()
    loss = lovasz_hinge(log_prob, torch.zeros(1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(1 + math.log(9))


def test_losses_of_instances_are_weighted_and_averaged():
    loss = LovaszHingeLoss(loss_weight=0.25)
    rng = torch.Generator().manual_seed(0)
    log_prob, target = -torch.rand(3, 5, 5, generator=rng), torch.rand(3, 5, 5, generator=rng) < 0.5
    each = loss(log_prob, target, reduction_override='none')
    weight = torch.tensor([1.0, 0.0, 2.0])
    torch.testing.assert_close(loss(log_prob, target), each.mean())
    torch.testing.assert_close(loss(log_prob, target, reduction_override='sum'), each.sum())
    torch.testing.assert_close(loss(log_prob, target, weight, avg_factor=4), (each * weight).sum() / 4)


def test_targets_must_be_bool():
    with pytest.raises(TypeError, match='float32'):
        LovaszHingeLoss()(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
