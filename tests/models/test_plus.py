"""EmbedMask plus as configs/_base_/embedmask-plus.py composes it."""

import copy

import pytest
import torch
from mmengine.config import Config

from embedmask_mmdet.models import (
    DiceCrossEntropyLoss,
    EmbedMaskBoxesFromMasks,
    EmbedMaskBoxSampling,
    EmbedMaskCertainty,
    EmbedMaskClassVotes,
    EmbedMaskNMS,
    EmbedMaskScaledBoxFrame,
)
from tests.builders import (
    PLUS_CONFIG,
    ROOT,
    batch,
    build_responsive_detector,
    compute_losses,
    plus_model_cfg,
    predict,
    tiny_detector,
)

SIZE = (96, 128)


def test_parts_are_those_of_the_config():
    model = tiny_detector(plus_model_cfg())
    plus = Config.fromfile(ROOT / 'configs' / '_base_' / 'embedmask-plus.py').plus
    assert type(model.frame) is EmbedMaskScaledBoxFrame
    assert type(model.bbox_head.sampling) is EmbedMaskBoxSampling
    assert model.bbox_head.sampling.num_mask_locations == plus.bbox_head.sampling.num_mask_locations
    assert model.bbox_head.margin_reduce_factor == plus.bbox_head.margin_reduce_factor
    assert type(model.mask_head.loss_mask) is DiceCrossEntropyLoss
    assert model.mask_head.box_padding == plus.mask_head.box_padding
    assert (model.mask_head.mask_thr, model.mask_head.resize_prob) == (plus.test_cfg.mask_thr, True)
    assert type(model.bbox_head.vote) is EmbedMaskClassVotes
    refinements = [EmbedMaskCertainty, EmbedMaskBoxesFromMasks, EmbedMaskNMS]
    assert [type(refine) for refine in model.mask_head.refinements] == refinements
    assert model.mask_head.refinements[1].weight == plus.test_cfg.refine[1].weight


@pytest.mark.parametrize(
    'build', [lambda: tiny_detector(plus_model_cfg()), lambda: build_responsive_detector(PLUS_CONFIG)]
)
def test_mask_loss_does_not_train_boxes(build):
    """Masks are placed relative to boxes, which would otherwise move to where masks want them."""
    model = build()
    loss = compute_losses(model, batch([SIZE], [3]))['loss_mask']
    assert loss > 0
    loss.backward()
    assert model.bbox_head.conv_reg.weight.grad is None
    assert all(scale.scale.grad is None for scale in model.bbox_head.scales)
    assert model.bbox_head.conv_embed.weight.grad.any()
    assert model.bbox_head.conv_margin.weight.grad.any()
    assert model.frame.scale.grad.any()


def test_pixel_branch_is_for_the_mask_head_alone():
    model = tiny_detector(plus_model_cfg())
    data = batch([SIZE], [3])
    losses = compute_losses(model, data)
    losses['loss_mask'].backward(retain_graph=True)
    weight = model.pixel_branch.stage_conv.conv.weight
    assert weight.grad.abs().max() > 0
    weight.grad = None
    (losses['loss_cls'] + losses['loss_bbox'] + losses['loss_centerness']).backward()
    assert weight.grad is None
    inputs = model.data_preprocessor(copy.deepcopy(data))['inputs']
    outs = model.eval()(inputs)
    assert [len(levels) for levels in outs[:5]] == [5] * 5
    assert outs[0][0].shape[-1] == inputs.shape[-1] // 8
    assert outs[5].shape[-1] == inputs.shape[-1] // 4


def test_mask_loss_of_untrained_boxes_sees_masks_as_ellipses_in_the_true_boxes():
    """Where boxes miss their instance, they are replaced by the ground truth, so that masks start well."""
    data = batch([SIZE], [3])
    losses = []
    for distance in (2.0, 0.0):
        model = tiny_detector(plus_model_cfg())
        with torch.no_grad():
            model.bbox_head.conv_reg.bias.fill_(distance)
        losses.append(float(compute_losses(model, data)['loss_mask']))
    assert losses[1] < 1.2 * losses[0]


def test_resized_probabilities_make_masks_no_smaller():
    masks = []
    for resize_prob in (False, True):
        (sample,) = predict(build_responsive_detector(resize_prob=resize_prob, mask_thr=0.4), batch([SIZE], [3]))
        masks.append(sample.pred_instances.masks)
    assert (masks[1] | ~masks[0]).all()
    assert masks[1].sum() > masks[0].sum()
