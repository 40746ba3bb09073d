"""What the detector makes of ordinary, empty and odd input, and which settings it refuses."""

import copy
import math

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from embedmask_mmdet import ops
from embedmask_mmdet.models import EmbedMaskBBoxHead
from embedmask_mmdet.models.mask_head import sort_by_score, weigh_locations
from embedmask_mmdet.models.proposals import ProposalMaps
from embedmask_mmdet.structures import RLEMasks
from tests.builders import (
    COCO_CONFIG,
    PLUS_CONFIG,
    batch,
    build_responsive_detector,
    compute_losses,
    plus_model_cfg,
    predict,
    tiny_detector,
    tiny_model_cfg,
)

SIZE = (96, 128)
PLAIN_KEYS = {'bboxes', 'scores', 'labels', 'masks'}


def detect(model, data):
    return [sample.pred_instances for sample in predict(model, data)]


@pytest.mark.parametrize('counts', [[3, 2], [2, 0], [0, 0]], ids=['both', 'one image empty', 'batch empty'])
@pytest.mark.parametrize('model_cfg', [tiny_model_cfg, plus_model_cfg], ids=['paper', 'plus'])
def test_every_parameter_gets_a_gradient(model_cfg, counts):
    model = tiny_detector(model_cfg())
    losses = compute_losses(model, batch([SIZE, SIZE], counts))
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_centerness', 'loss_mask'}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_initial_margin_and_biases():
    model = tiny_detector()
    maps = model.bbox_head([torch.zeros(1, 32, 4, 4)] * 5, model.frame)
    assert float(maps.proposal_margins[0].mean()) == pytest.approx(0.1733, abs=1e-4)
    assert float(maps.cls_scores[0].sigmoid().mean()) == pytest.approx(0.01, rel=1e-3)
    assert float(model.mask_head.conv_embed.weight.std()) == pytest.approx(0.01, rel=0.2)
    assert not model.mask_head.conv_embed.bias.any()


def test_instance_without_any_positive_location_costs_nothing():
    data = batch([SIZE], [1])
    instances = data['data_samples'][0].gt_instances
    instances.masks.masks[:] = 0
    losses = compute_losses(tiny_detector(), data)
    assert losses['loss_mask'] == 0
    assert losses['loss_bbox'] == 0


def test_padding_of_the_box_limits_the_loss():
    data = batch([SIZE], [3])
    losses = {}
    for padding in (-1, 0, 1000):
        cfg = tiny_model_cfg()
        cfg.mask_head.box_padding = padding
        losses[padding] = float(compute_losses(tiny_detector(cfg), data)['loss_mask'])
    assert losses[0] < losses[-1]
    assert losses[1000] == pytest.approx(losses[-1], rel=1e-6)


@pytest.mark.parametrize('sizes', [[SIZE], [(1, 1)], [(37, 53), (61, 29)], [(1, 200)]])
@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_detections_fit_their_image(sizes, mask_format):
    model = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=5, mask_format=mask_format))
    data = batch(sizes, [1] * len(sizes))
    for size, results in zip(sizes, detect(model, data)):
        assert set(results.keys()) == PLAIN_KEYS
        assert results.masks.shape == (len(results), *size)
        assert results.scores.tolist() == sorted(results.scores.tolist(), reverse=True)


def test_masks_are_the_same_in_both_formats():
    by_format = {}
    for mask_format in ('bitmap', 'rle'):
        model = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=20, mask_format=mask_format))
        by_format[mask_format] = detect(model, batch([SIZE], [3]))[0]
    assert isinstance(by_format['rle'].masks, RLEMasks)
    assert by_format['bitmap'].masks.any()
    np.testing.assert_array_equal(by_format['rle'].masks.numpy(), by_format['bitmap'].masks.numpy())


@pytest.mark.parametrize('nms_pre', [3, 1000, -1])
@pytest.mark.parametrize('score_thr', [0.0, 0.4])
def test_classes_decide_what_counts_and_centerness_what_is_kept(nms_pre, score_thr):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, channels, 4, 5, generator=generator) for channels in (2, 4, 1, 16, 16)]
    # Other levels find nothing.
    proposals = ProposalMaps(*([level] + [torch.full((1, level.shape[1], 1, 1), -math.inf)] * 4 for level in maps))
    cfg = ConfigDict(score_thr=score_thr, nms_pre=nms_pre)
    head = tiny_detector().bbox_head
    (actual,) = head.predict_by_feat(proposals, [dict(img_shape=(32, 40))], cfg, with_nms=False)
    maps = [level[0] for level in maps]
    probs, centerness = maps[0].sigmoid(), maps[2].sigmoid()
    expected = sorted(
        (
            (float(probs[label, y, x] * centerness[0, y, x]), label, y, x)
            for label in range(2)
            for y in range(4)
            for x in range(5)
            if probs[label, y, x] > score_thr
        ),
        reverse=True,
    )[: nms_pre if nms_pre > 0 else None]
    np.testing.assert_allclose(actual.scores, [score for score, *_ in expected], rtol=1e-6)
    assert actual.labels.tolist() == [label for _, label, *_ in expected]
    embeds = torch.stack([maps[3][:, y, x] for *_, y, x in expected])
    assert torch.equal(actual.proposal_embed, embeds)
    left = [min(max(8 * x + 4 - float(maps[1][0, y, x]), 0), 40) for *_, y, x in expected]
    np.testing.assert_allclose(actual.bboxes[:, 0], left, rtol=1e-5)
    assert actual.points.tolist() == [[8 * x + 4, 8 * y + 4] for *_, y, x in expected]


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_no_detections(mask_format):
    model = tiny_detector(tiny_model_cfg(score_thr=0.99, mask_format=mask_format))
    (results,) = detect(model, batch([SIZE], [1]))
    assert len(results) == 0
    assert results.masks.shape == (0, *SIZE)


def test_masks_and_boxes_follow_the_original_image():
    model = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=10))
    data = batch([SIZE], [2])
    (at_input,) = detect(model, data)
    data['data_samples'][0].set_metainfo(dict(ori_shape=(192, 256), scale_factor=(0.5, 0.5)))
    (at_original,) = detect(model, data)
    torch.testing.assert_close(at_original.bboxes, at_input.bboxes * 2)
    assert at_original.masks.shape == (10, 192, 256)


def test_results_do_not_depend_on_the_batch():
    model = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=10))
    data = batch([SIZE, SIZE], [2, 2])
    together = detect(model, data)
    for i, expected in enumerate(together):
        (alone,) = detect(model, {key: values[i : i + 1] for key, values in data.items()})
        torch.testing.assert_close(alone.scores, expected.scores)
        assert (alone.masks != expected.masks).float().mean() < 1e-4


def test_tensor_mode_runs_the_network_alone():
    outs = tiny_detector().eval()(torch.zeros(1, 3, 64, 64), mode='tensor')
    assert outs[-1].shape == (1, 16, 8, 8)


def test_class_loss_is_computed_in_float32_under_autocast():
    model, dtypes = tiny_detector(), []
    model.bbox_head.loss_cls.register_forward_pre_hook(lambda module, args: dtypes.append(args[0].dtype))
    with torch.autocast('cpu', torch.bfloat16):
        compute_losses(model, batch([SIZE], [2]))
    assert dtypes == [torch.float32]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_locations_are_exact_under_autocast(dtype):
    model = build_responsive_detector(keep_embed=True, max_per_img=200)
    with torch.autocast('cpu', dtype):
        (results,) = detect(model, batch([(64, 3000)], [2]))
    centers = [torch.arange(stride / 2, 3072, stride) for stride in (8, 16, 32, 64, 128)]
    assert results.points.dtype == torch.float32
    assert torch.isin(results.points, torch.cat(centers)).all()
    assert torch.isin(results.points, centers[0]).all(1).any()


def test_deformable_last_convolutions_start_as_ordinary_ones():
    cfg = tiny_model_cfg()
    cfg.bbox_head.dcn_on_last_conv = cfg.mask_head.dcn_on_last_conv = True
    model = tiny_detector(cfg).train()
    offsets = [m.conv_offset for m in model.modules() if hasattr(m, 'conv_offset')]
    assert len(offsets) == 3
    assert not any(conv.weight.any() for conv in offsets)
    sum(compute_losses(model, batch([SIZE], [2])).values()).backward()


@pytest.mark.parametrize(
    'part, setting, message',
    [
        ('test_cfg', dict(mask_thr=0.0), 'mask_thr must be a probability between 0 and 1, got 0.0'),
        ('test_cfg', dict(mask_thr=1.5), 'mask_thr must be a probability between 0 and 1, got 1.5'),
        ('test_cfg', dict(mask_format='polygon'), r"mask_format must be one of \['bitmap', 'rle'\], got 'polygon'"),
        ('mask_head', dict(embed_dim=8), 'same embed_dim, got 16 in bbox_head and 8 in mask_head'),
        ('mask_head', dict(mask_scale=3), 'mask_scale must divide stride 8'),
        ('mask_head', dict(stride=6), 'stride must be that of the finest level of bbox_head, or 2, 4, ... times finer'),
        ('mask_head', dict(stride=16), 'stride must be that of the finest level of bbox_head, or 2, 4, ... times'),
        ('bbox_head', dict(embed_dim=1), 'embed_dim must be at least 2'),
        ('bbox_head', dict(initial_distance=-1), 'initial_distance must be at least 0, got -1'),
        ('frame', dict(prior_margin=0), 'prior_margin must be above 0'),
        ('frame', dict(coord_scale=-1), 'coord_scale must be above 0'),
    ],
)
def test_impossible_settings_are_named(part, setting, message):
    cfg = tiny_model_cfg()
    cfg[part].update(setting)
    with pytest.raises(ValueError, match=message):
        MODELS.build(ConfigDict(cfg))


def test_necks_with_other_levels_than_the_heads_are_named():
    cfg = tiny_model_cfg()
    cfg.mask_head.stride = 4
    with pytest.raises(ValueError, match='the neck gives 5 levels, the heads need 6, with strides from 4 to 128'):
        compute_losses(tiny_detector(cfg), batch([SIZE], [2]))


@pytest.mark.parametrize('model_cfg', [tiny_model_cfg, plus_model_cfg], ids=['paper', 'plus'])
def test_data_without_masks_are_named(model_cfg):
    data = batch([SIZE], [2])
    del data['data_samples'][0].gt_instances.masks
    with pytest.raises(ValueError, match='with_mask=True'):
        compute_losses(tiny_detector(model_cfg()), data)


def test_proposals_and_pixels_are_embedded_in_one_frame():
    model = tiny_detector()
    assert [name for name, _ in model.named_parameters() if name.startswith('frame')] == ['frame.scale']
    feats = [torch.randn(1, 32, size, size) for size in (8, 4, 2, 1, 1)]
    with torch.no_grad():
        before = model.bbox_head(feats, model.frame).proposal_embeds[0], model.mask_head(feats, model.frame)
        model.frame.scale.mul_(3)
        after = model.bbox_head(feats, model.frame).proposal_embeds[0], model.mask_head(feats, model.frame)
    points = torch.arange(8) * 8 + 4
    for old, new in zip(before, after):
        moved = (new - old)[0]
        torch.testing.assert_close(moved[0], 2 * points.expand(8, 8) / 100)
        torch.testing.assert_close(moved[1], 2 * points[:, None].expand(8, 8) / 100)
        assert not moved[2:].any()


@pytest.mark.parametrize('prior_margin', [1.0, 2.0])
def test_initial_margin_is_that_of_the_frame(prior_margin):
    cfg = tiny_model_cfg()
    cfg.frame.prior_margin = prior_margin
    model = tiny_detector(cfg)
    margins = model.bbox_head([torch.zeros(1, 32, 2, 2)] * 5, model.frame).proposal_margins[0]
    torch.testing.assert_close(margins, torch.full_like(margins, math.log(2) / prior_margin**2))


def test_initial_margin_of_a_config_is_refused():
    cfg = tiny_model_cfg()
    cfg.bbox_head.initial_margin = 0.1
    with pytest.raises(ValueError, match='Set model.frame.prior_margin instead'):
        tiny_detector(cfg)


@pytest.mark.parametrize('initial_distance', [0.5, 2.0])
def test_boxes_have_a_size_from_the_start(initial_distance):
    cfg = tiny_model_cfg()
    cfg.bbox_head.initial_distance = initial_distance
    model = tiny_detector(cfg).train()
    feats = [torch.zeros(1, 32, size, size) for size in (8, 4, 2, 1, 1)]
    for level in model.bbox_head(feats, model.frame).bbox_preds:
        torch.testing.assert_close(level, torch.full_like(level, initial_distance))


@pytest.mark.parametrize('model_cfg', [tiny_model_cfg, plus_model_cfg], ids=['paper', 'plus'])
@pytest.mark.parametrize('training', [True, False])
def test_distances_and_embeddings_stay_float32_under_autocast(model_cfg, training):
    model = tiny_detector(model_cfg()).train(training)
    inputs = torch.randn(1, 3, 64, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        *outs, pixel_embeds = model(inputs, mode='tensor')
    proposals = ProposalMaps(*outs)
    # Without that, the test would show nothing.
    assert {level.dtype for level in proposals.cls_scores} == {torch.bfloat16}
    for maps in (proposals.bbox_preds, proposals.proposal_embeds, proposals.proposal_margins, [pixel_embeds]):
        assert {level.dtype for level in maps} == {torch.float32}


def test_locations_far_from_the_center_of_an_instance_are_background():
    """Center sampling (FCOS, section 3.1) keeps locations within 1.5 strides of the center."""
    head = EmbedMaskBBoxHead(2, 32, feat_channels=32)
    sizes = [(32 // 2**level, 32 // 2**level) for level in range(5)]
    proposals = ProposalMaps(*([torch.zeros(1, 1, *size) for size in sizes] for _ in range(5)))
    masks = BitmapMasks(np.ones((1, 256, 256), np.uint8), 256, 256)
    instances = InstanceData(bboxes=torch.tensor([[64.0, 64, 164, 164]]), labels=torch.tensor([1]), masks=masks)
    (targets,) = head.assign(proposals, [instances])
    points = torch.cat(head.prior_generator.grid_priors(sizes, device='cpu'))
    positive = targets.gt_inds == 0
    assert positive.any()
    # Locations of strides 8 and 16 have a side of the box in their level's range.
    distances = (points - 114).abs().amax(dim=1)
    assert (distances[positive] < 1.5 * 16).all()
    assert torch.equal(targets.labels, torch.where(positive, 1, 2))


def test_instances_have_the_same_weight_however_many_locations_they_have():
    weights = weigh_locations(torch.tensor([3, 0, 3, 3, 1]))
    torch.testing.assert_close(weights, torch.tensor([1 / 9, 1 / 3, 1 / 9, 1 / 9, 1 / 3]))
    assert weigh_locations(torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_detections_are_sorted_best_first_and_equal_ones_keep_their_order():
    results = InstanceData(scores=torch.tensor([0.2, 0.9, 0.2, 0.5]), labels=torch.arange(4))
    assert sort_by_score(results).labels.tolist() == [1, 3, 0, 2]
    in_order = InstanceData(scores=torch.tensor([0.9, 0.5, 0.5]), labels=torch.arange(3))
    assert sort_by_score(in_order) is in_order


@pytest.mark.parametrize('config', [COCO_CONFIG, PLUS_CONFIG], ids=['paper', 'plus'])
def test_kept_embeddings_have_no_graph_and_make_the_masks(config):
    model = build_responsive_detector(config, keep_embed=True)
    # Outside of no_grad, where a graph would hold the memory of the network.
    (sample,) = model.test_step(batch([SIZE], [3]))
    results = sample.pred_instances
    assert set(results.keys()) == {*PLAIN_KEYS, 'points', 'crop_bboxes', 'proposal_embed', 'proposal_margin'}
    assert not any(results[name].requires_grad for name in set(results.keys()))
    stride = model.mask_head.stride
    assert sample.pixel_embed.shape == (16, SIZE[0] // stride, SIZE[1] // stride)
    assert not sample.pixel_embed.requires_grad
    best = copy.deepcopy(sample).pred_instances[:2]
    assert len(best) == 2
    assert best.proposal_embed.shape == best.proposal_margin.shape == (2, 16)
    assert best.points.shape == (2, 2)
    masks = ops.instance_masks(
        sample.pixel_embed,
        results.proposal_embed,
        results.proposal_margin,
        results.crop_bboxes,
        stride=stride,
        img_shape=SIZE,
        ori_shape=SIZE,
        mask_thr=model.mask_head.mask_thr,
        upscale=model.mask_head.mask_scale,
        resize_prob=model.mask_head.resize_prob,
    )
    assert torch.equal(masks, results.masks)
    assert masks.any()


def test_embeddings_are_not_kept_without_being_asked_for():
    (sample,) = build_responsive_detector(PLUS_CONFIG).test_step(batch([SIZE], [3]))
    assert set(sample.pred_instances.keys()) == PLAIN_KEYS
    assert 'pixel_embed' not in sample
    assert not sample.pred_instances.scores.requires_grad


def test_kept_pixel_embeddings_do_not_hold_the_memory_of_their_batch():
    for sample in predict(build_responsive_detector(keep_embed=True), batch([SIZE, SIZE], [2, 2])):
        assert sample.pixel_embed.untyped_storage().nbytes() == sample.pixel_embed.nbytes
