"""Numbers of the authors' implementation, within the tolerances that come with them."""

import numpy as np
import pytest
import torch

from embedmask_mmdet.models.losses.lovasz_hinge import LovaszHingeLoss, lovasz_hinge
from tests.reference import DATA, INPUT_SIZE, Heads, features, ground_truth, levels, relative_error

OUTPUTS = ('cls_score', 'bbox_pred', 'centerness', 'proposal_embed', 'proposal_margin')


@pytest.fixture(scope='module')
def heads():
    return Heads()


@pytest.fixture(scope='module')
def loss_arrays():
    return np.load(DATA / 'loss.npz')


@pytest.fixture(scope='module')
def trained(heads):
    """One training step: outputs, losses and positives, with gradients of the mask loss kept."""
    heads.train()
    outs = heads.bbox_head(features())
    (pixel_embed,) = heads.mask_head(features())
    kept = [*outs[3], *outs[4], pixel_embed]
    for tensor in kept:
        tensor.retain_grad()
    metas = [dict(batch_input_shape=INPUT_SIZE)] * 2
    losses = heads.bbox_head.loss_by_feat(*outs, ground_truth(), metas)
    matched_gts = heads.bbox_head._raw_positive_infos['matched_gts']
    positives = heads.bbox_head.get_positive_infos()
    losses.update(heads.mask_head.loss_by_feat(pixel_embed, ground_truth(), metas, positives))
    losses['loss_mask'].backward(retain_graph=True)
    return dict(outs=outs, pixel_embed=pixel_embed, losses=losses, matched_gts=matched_gts, positives=positives)


@pytest.mark.parametrize('index, name', enumerate(OUTPUTS))
def test_training_outputs(heads, index, name):
    arrays = np.load(DATA / 'head.npz')
    for actual, expected in zip(heads.train().bbox_head(features())[index], levels(arrays, f'train_{name}')):
        assert relative_error(actual, expected) < 1e-4


def test_pixel_embed(heads):
    (pixel_embed,) = heads.mask_head(features())
    assert relative_error(pixel_embed, np.load(DATA / 'head.npz')['train_pixel_embed']) < 1e-4


def test_boxes_are_in_input_pixels_at_inference(heads):
    bbox_preds = heads.eval().bbox_head(features())[1]
    for actual, expected in zip(bbox_preds, levels(np.load(DATA / 'head.npz'), 'eval_bbox_pred')):
        assert relative_error(actual, expected) < 1e-4


@pytest.mark.parametrize('img', [0, 1])
def test_assignment(heads, trained, loss_arrays, img):
    matched_gt = trained['matched_gts'][img].numpy()
    np.testing.assert_array_equal(matched_gt, loss_arrays[f'matched_gt{img}'])
    labels = np.append(ground_truth()[img].labels.numpy() + 1, 0)[matched_gt]
    np.testing.assert_array_equal(labels, loss_arrays[f'labels{img}'])


@pytest.mark.parametrize('img', [0, 1])
def test_location_of_each_instance(trained, loss_arrays, img):
    chosen = loss_arrays[f'pos_location{img}']
    positives = trained['positives'][img]
    np.testing.assert_array_equal(positives.gt_inds, np.flatnonzero(chosen >= 0))
    embeds = torch.cat([level.flatten(2).transpose(1, 2) for level in trained['outs'][3]], dim=1)
    torch.testing.assert_close(positives.proposal_embed, embeds[img, chosen[chosen >= 0]])


@pytest.mark.parametrize('img', [0, 1])
def test_mask_loss_of_each_instance(heads, trained, loss_arrays, img):
    mask_embed = torch.nn.functional.interpolate(trained['pixel_embed'], scale_factor=2, mode='bilinear')[img]
    log_prob, target, _ = heads.mask_head._compare_single(mask_embed, trained['positives'][img], ground_truth()[img])
    loss = lovasz_hinge(log_prob, target)
    np.testing.assert_allclose(loss.detach(), loss_arrays[f'loss_per_gt{img}'], rtol=1e-4)


@pytest.mark.parametrize('name', ['loss_cls', 'loss_centerness', 'loss_mask'])
def test_losses(trained, loss_arrays, name):
    assert float(trained['losses'][name]) == pytest.approx(float(loss_arrays[name]), rel=1e-4)


@pytest.mark.parametrize('index, name', [(3, 'proposal_embed'), (4, 'proposal_margin')])
def test_gradients_of_proposals(trained, loss_arrays, index, name):
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in trained['outs'][index]]
    expected = levels(loss_arrays, f'grad_{name}')
    largest = max(grad.abs().max() for grad in expected)
    for actual, wanted in zip(grads, expected):
        assert (actual - wanted).abs().max() < 1e-3 * largest


def test_gradients_of_pixels(trained, loss_arrays):
    assert relative_error(trained['pixel_embed'].grad, loss_arrays['grad_pixel_embed']) < 1e-3


def test_lovasz_hinge():
    arrays = np.load(DATA / 'lovasz.npz')
    prob = torch.from_numpy(arrays['prob'])
    log_prob = prob.log().requires_grad_()
    loss = LovaszHingeLoss(loss_weight=1.0, reduction='none')(log_prob, torch.from_numpy(arrays['target']))
    np.testing.assert_allclose(loss.detach(), arrays['loss'], rtol=1e-4)
    loss.sum().backward()
    # The reference differentiates by the probability, where the logarithm of 0 has no derivative.
    assert relative_error(log_prob.grad.where(prob == 0, log_prob.grad / prob), arrays['grad']) < 1e-3
