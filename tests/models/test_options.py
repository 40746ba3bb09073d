"""What departs from the reference where asked for: each option does what it says, alone and with the others."""

import copy
import math

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmdet.structures.mask import mask2bbox
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from embedmask_mmdet.models import EmbedMaskBBoxHead
from embedmask_mmdet.models.mask_head import box_masks, mask_certainties
from embedmask_mmdet.ops import embedding_log_prob, instance_masks
from embedmask_mmdet.structures import RLEMasks, mask_bboxes
from embedmask_mmdet.targets import aligned_ious, best_candidates, inside_masks
from tests.reference import INPUT_SIZE, Heads, features, ground_truth
from tests.tiny import batch, tiny_detector, tiny_model_cfg

SIZE = (96, 128)
SIDE = st.floats(8, 2000)
MASK_BOX_NMS = dict(type='nms', iou_threshold=0.5)
FINER = dict(neck=dict(start_level=0, num_outs=6), mask_head=dict(stride=4, mask_scale=1))
ALL = dict(
    neck=FINER['neck'],
    bbox_head=dict(
        box_centers=True,
        box_margins=True,
        guide_boxes=True,
        detect_in_mask=False,
        num_mask_locations=3,
        coord_scale=16,
        initial_distance=2.0,
    ),
    mask_head=dict(
        num_levels=3,
        box_padding=2,
        mask_target='coverage',
        loss_mask=dict(type='DiceCrossEntropyLoss'),
        **FINER['mask_head'],
    ),
    test_cfg=dict(
        resize_prob=True,
        score_masks=True,
        keep_embed=True,
        score_thr=0.0,
        max_per_img=10,
        mask_box_nms=MASK_BOX_NMS,
    ),
)


def detector(**parts):
    """Build the tiny detector with settings of its parts."""
    cfg = tiny_model_cfg()
    for part, setting in parts.items():
        cfg[part].update(setting)
    return tiny_detector(cfg)


def losses_of(model, data):
    data = model.data_preprocessor(copy.deepcopy(data), training=True)
    return model.loss(data['inputs'], data['data_samples'])


def predictions_of(model, data):
    with torch.no_grad():
        return model.eval().test_step(copy.deepcopy(data))[0].pred_instances


def initial_prob(bbox, location, points, **settings):
    """Probability of points ``(K, 2)`` when a location of an untrained head has found a box."""
    head = EmbedMaskBBoxHead(1, 8, feat_channels=8, stacked_convs=0, **settings)
    others = torch.zeros(1, head.embed_dim - 2)
    embed = torch.cat([head.position.embed(location[None]), others], dim=1)
    margin = torch.full_like(embed, math.exp(head.log_initial_margin))
    embed, margin = head._relate_to_boxes(embed, margin, location[None], bbox[None])
    pixels = torch.cat([head.position.embed(points), others.expand(len(points), -1)], dim=1)
    return embedding_log_prob(pixels.t()[:, None], embed, margin)[0, 0].exp().detach()


@given(SIDE, SIDE, st.floats(0.2, 0.8), st.sampled_from([16.0, 100.0]), st.sampled_from([1.0, 2.0]))
@settings(max_examples=40, deadline=None)
def test_initial_mask_is_the_ellipse_in_the_box_whatever_its_size(width, height, off_center, coord_scale, prior_margin):
    bbox = torch.tensor([0, 0, width, height]) + torch.tensor([300.0, 200.0]).repeat(2)
    u, v = torch.meshgrid(*[torch.linspace(-0.5, 0.5, 5)] * 2, indexing='xy')
    points = (bbox[:2] + bbox[2:]) / 2 + torch.stack([u, v], 2).view(-1, 2) * (bbox[2:] - bbox[:2])
    location = bbox[:2] + off_center * (bbox[2:] - bbox[:2])
    settings = dict(box_centers=True, box_margins=True, coord_scale=coord_scale, prior_margin=prior_margin)
    prob = initial_prob(bbox, location, points, **settings)
    torch.testing.assert_close(prob, 0.5 ** (4 * (u**2 + v**2)).flatten(), rtol=1e-3, atol=1e-3)


def test_initial_mask_of_the_reference_is_a_disc_around_the_location():
    location, bbox = torch.tensor([60.0, 40.0]), torch.tensor([50.0, 30.0, 90.0, 60.0])
    points = location + torch.tensor([[0.0, 0.0], [200.0, 0.0], [0.0, -200.0]])
    torch.testing.assert_close(initial_prob(bbox, location, points), torch.tensor([1.0, 0.5, 0.5]))


def test_margins_alone_leave_the_ellipse_around_the_location():
    location, bbox = torch.tensor([60.0, 40.0]), torch.tensor([50.0, 30.0, 90.0, 60.0])
    points = location + torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, -15.0]])
    torch.testing.assert_close(initial_prob(bbox, location, points, box_margins=True), torch.tensor([1.0, 0.5, 0.5]))


def test_boxes_without_extent_draw_a_cell():
    location = torch.tensor([60.0, 40.0])
    points = location + torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    for bbox in ([60.0, 40.0, 60.0, 40.0], [61.0, 41.0, 59.0, 39.0]):
        prob = initial_prob(torch.tensor(bbox), location, points, box_centers=True, box_margins=True)
        torch.testing.assert_close(prob, torch.tensor([1.0, 0.5, 0.5]))


def test_training_and_inference_relate_to_boxes_alike():
    head = Heads().bbox_head
    head.box_centers = head.box_margins = True
    cls_scores, bbox_preds, *others = head.train()(features())
    # Boxes that stay in the image, which inference would else clip.
    bbox_preds = [pred.detach().clamp(0.1, 0.5) for pred in bbox_preds]
    head.loss_by_feat(cls_scores, bbox_preds, *others, ground_truth(), [{}] * 2)
    in_training = head.get_positive_infos()
    in_pixels = [pred * stride for pred, stride in zip(bbox_preds, head.strides)]
    metas = [dict(img_shape=INPUT_SIZE)] * 2
    cfg = ConfigDict(score_thr=0, nms_pre=-1)
    detections = head.predict_by_feat(cls_scores, in_pixels, *others, metas, cfg, with_nms=False)
    for positives, results in zip(in_training, detections):
        for name in ('proposal_embed', 'proposal_margin'):
            distances = torch.cdist(positives[name], results[name], p=torch.inf).amin(dim=1)
            assert (distances <= 1e-5 * positives[name].abs().amax(dim=1)).all()


def chosen_with(guide_boxes, size):
    """Locations that the mask loss looks at where all predicted boxes are squares of a size in cells."""
    head = Heads().bbox_head
    head.box_centers = head.box_margins = True
    head.guide_boxes = guide_boxes
    cls_scores, bbox_preds, *others = head.train()(features())
    bbox_preds = [torch.full_like(pred, size / 2) for pred in bbox_preds]
    head.loss_by_feat(cls_scores, bbox_preds, *others, ground_truth(), [{}] * 2)
    infos = dict(head._raw_positive_infos)
    return head, infos, head.get_positive_infos()


@pytest.mark.parametrize('size', [1e-3, 2.0, 6.0])
def test_guided_boxes_are_as_close_to_the_truth_as_they_overlap_it(size):
    head, infos, guided = chosen_with(True, size)
    _, _, alone = chosen_with(False, size)
    for img, (with_guide, without) in enumerate(zip(guided, alone)):
        gt_bboxes = ground_truth()[img].bboxes[with_guide.gt_inds]
        assert torch.equal(with_guide.gt_inds, without.gt_inds)
        # The location is found again by its embedding's other channels, which boxes do not touch.
        at = torch.cdist(with_guide.proposal_embed[:, 2:], infos['proposal_embed'][img, :, 2:]).argmin(dim=1)
        bboxes, points = infos['bboxes'][img, at], infos['points'][at]
        ious = aligned_ious(bboxes, gt_bboxes)[:, None]
        expected = head._relate_to_boxes(
            infos['proposal_embed'][img, at],
            infos['proposal_margin'][img, at],
            points,
            ious * bboxes + (1 - ious) * gt_bboxes,
        )
        torch.testing.assert_close(with_guide.proposal_embed, expected[0])
        torch.testing.assert_close(with_guide.proposal_margin, expected[1])
        assert not torch.equal(with_guide.proposal_margin, without.proposal_margin)


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_several_best_candidates_of_each_instance(seed, count, num_gts, num_best):
    rng = np.random.default_rng(seed)
    gt_inds, quality = rng.integers(num_gts, size=count), rng.integers(4, size=count) / 4
    expected = []
    for gt in range(num_gts):
        candidates = sorted(np.flatnonzero(gt_inds == gt), key=lambda i: (-quality[i], i))
        expected += candidates[:num_best]
    actual = best_candidates(torch.from_numpy(gt_inds), torch.from_numpy(quality), num_gts, num_best)
    assert actual.tolist() == expected


def test_instances_count_alike_however_many_locations_they_have():
    heads = Heads()
    (pixel_embed,) = heads.mask_head(features())
    rng = torch.Generator().manual_seed(0)
    embed, margin = torch.randn(2, 16, generator=rng), torch.rand(2, 16, generator=rng)
    losses = []
    for inds in ([0, 1], [0, 1, 1, 1]):
        positives = InstanceData(gt_inds=torch.tensor(inds), proposal_embed=embed[inds], proposal_margin=margin[inds])
        loss = heads.mask_head.loss_by_feat(pixel_embed[:1], ground_truth()[:1], [{}], [positives])['loss_mask']
        losses.append(float(loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_mask_loss_looks_at_as_many_locations_as_told():
    counts = {}
    for number in (1, 2, 1000):
        head = Heads().bbox_head
        head.num_mask_locations = number
        head.loss_by_feat(*head(features()), ground_truth(), [{}] * 2)
        available = torch.cat(head._raw_positive_infos['matched_gts']).ge(0).sum()
        counts[number] = sum(len(positives) for positives in head.get_positive_infos())
    instances = counts[1]
    assert instances < counts[2] <= 2 * instances
    assert counts[1000] == available


def test_detector_trains_on_locations_of_its_own():
    """Boxes are trained as without masks, masks only inside them."""
    striped = ground_truth()
    for gt_instances in striped:
        gt_instances.masks.masks[:, :, ::3] = 0
    losses, matched = {}, {}
    for name, in_mask, both in (('reference', True, True), ('boxes', False, True), ('apart', True, False)):
        head = Heads().bbox_head
        head.sample_in_mask, head.detect_in_mask = in_mask, both
        losses[name] = {key: float(loss) for key, loss in head.loss_by_feat(*head(features()), striped, []).items()}
        matched[name] = head._raw_positive_infos['matched_gts']
    assert losses['apart'] == losses['boxes']
    assert losses['apart'] != losses['reference']
    points = torch.cat(head._mlvl_points(features()))
    for gt_instances, apart, boxes in zip(striped, matched['apart'], matched['boxes']):
        inside = inside_masks(gt_instances.masks, points)
        assert apart.tolist() == [gt if gt >= 0 and inside[p, gt] else -1 for p, gt in enumerate(boxes.tolist())]
        assert 0 < (apart >= 0).sum() < (boxes >= 0).sum()


def test_instance_without_a_location_in_its_mask_still_has_a_box():
    data = batch([SIZE], [1])
    data['data_samples'][0].gt_instances.masks.masks[:] = 0
    losses = losses_of(detector(bbox_head=dict(detect_in_mask=False)).train(), data)
    assert losses['loss_mask'] == 0
    assert losses['loss_bbox'] > 0


@pytest.mark.parametrize('num_levels', [1, 2, 3])
def test_levels_that_feed_the_tower(num_levels):
    head = detector(mask_head=dict(num_levels=num_levels)).mask_head
    rng = torch.Generator().manual_seed(0)
    feats = [torch.randn(1, 32, size, size + 3, generator=rng) for size in (16, 8, 4, 2, 1)]
    (alone,) = head(feats[:1] + [torch.zeros_like(feat) for feat in feats[1:]])
    (together,) = head(feats)
    assert together.shape == alone.shape
    for level in range(1, 5):
        (without,) = head([torch.zeros_like(feat) if i == level else feat for i, feat in enumerate(feats)])
        assert torch.equal(without, together) == (level >= num_levels)


def test_a_finer_level_is_the_mask_heads_alone():
    model = detector(**FINER).train()
    data = batch([SIZE], [3])
    losses = losses_of(model, data)
    losses['loss_mask'].backward(retain_graph=True)
    finest = model.neck.fpn_convs[0].conv.weight
    assert finest.grad.abs().max() > 0
    finest.grad = None
    (losses['loss_cls'] + losses['loss_bbox'] + losses['loss_centerness']).backward()
    assert finest.grad is None
    inputs = model.data_preprocessor(copy.deepcopy(data))['inputs']
    outs = model.eval()(inputs)
    assert [len(levels) for levels in outs[:5]] == [5] * 5
    assert outs[0][0].shape[-1] == inputs.shape[-1] // 8
    assert outs[5].shape[-1] == inputs.shape[-1] // 4


@pytest.mark.parametrize('initial_distance', [0.5, 2.0])
def test_boxes_have_an_extent_from_the_start(initial_distance):
    head = detector(bbox_head=dict(initial_distance=initial_distance)).bbox_head.train()
    distances = head([torch.zeros(1, 32, size, size) for size in (8, 4, 2, 1, 1)])[1]
    for level in distances:
        torch.testing.assert_close(level, torch.full_like(level, initial_distance))


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_boxes_around_masks(mask_format):
    """Of equal masks the best one stays, whatever the boxes are; empty ones keep their box."""
    masks = torch.zeros(4, 40, 60, dtype=torch.bool)
    masks[:2, 5:20, 10:50] = True
    masks[2, 30:35, 3] = True
    if mask_format == 'rle':
        masks = RLEMasks(pycocotools.mask.encode(np.asfortranarray(masks.permute(1, 2, 0).byte().numpy())), (40, 60))
    bboxes = torch.tensor([[0.0, 0, 20, 20], [20, 0, 60, 30], [0, 0, 9, 9], [1, 1, 2, 2]])
    results = InstanceData(
        bboxes=bboxes, scores=torch.tensor([0.7, 0.8, 0.9, 0.1]), labels=torch.zeros(4, dtype=torch.long), masks=masks
    )
    boxed = box_masks(results, MASK_BOX_NMS)
    assert boxed.bboxes.tolist() == [[3, 30, 4, 35], [10, 5, 50, 20], [1, 1, 2, 2]]
    assert boxed.scores.tolist() == pytest.approx([0.9, 0.8, 0.1])
    assert boxed.masks.numpy().sum((1, 2)).tolist() == [5, 600, 0]


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_second_class_of_an_object_ranks_below_others(mask_format):
    """Soft-NMS (Bodla et al., arXiv 1704.04503, equation 3) of boxes of all classes, of which the first two overlap."""
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[:2, 5:20, 10:50] = True
    masks[2, 30:35, 3:30] = True
    if mask_format == 'rle':
        masks = RLEMasks(pycocotools.mask.encode(np.asfortranarray(masks.permute(1, 2, 0).byte().numpy())), (40, 60))
    results = InstanceData(
        bboxes=torch.zeros(3, 4), scores=torch.tensor([0.8, 0.7, 0.5]), labels=torch.tensor([0, 1, 2]), masks=masks
    )
    nms = dict(type='soft_nms', method='gaussian', sigma=0.5, class_agnostic=True)
    ranked = box_masks(results, nms)
    assert ranked.labels.tolist() == [0, 2, 1]
    assert ranked.scores.tolist() == pytest.approx([0.8, 0.5, 0.7 * math.exp(-1 / 0.5)])
    assert ranked.masks.numpy().sum((1, 2)).tolist() == [600, 135, 600]


def test_boxes_move_towards_masks_as_far_as_told():
    bboxes, mask = torch.tensor([[0.0, 0, 20, 20], [0, 0, 8, 8]]), torch.zeros(2, 40, 60, dtype=torch.bool)
    mask[0, 10:30, 4:44] = True
    results = InstanceData(bboxes=bboxes, scores=torch.ones(2), labels=torch.tensor([0, 1]), masks=mask)
    boxed = box_masks(results, MASK_BOX_NMS, 0.25)
    assert boxed.bboxes.tolist() == [[1, 2.5, 26, 22.5], [0, 0, 8, 8]]


@pytest.mark.parametrize('rescale', [True, False])
@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_detections_with_boxes_around_their_masks(mask_format, rescale):
    test_cfg = dict(score_thr=0.0, max_per_img=20, mask_format=mask_format, mask_box_nms=MASK_BOX_NMS)
    model = detector(test_cfg=test_cfg).eval()
    data = batch([SIZE], [3])
    data['data_samples'][0].set_metainfo(dict(ori_shape=(48, 64), scale_factor=(2.0, 2.0)))
    data = model.data_preprocessor(data)
    with torch.no_grad():
        (sample,) = model.predict(data['inputs'], data['data_samples'], rescale=rescale)
    results = sample.pred_instances
    masks = torch.from_numpy(results.masks.numpy())
    assert masks.shape[1:] == ((48, 64) if rescale else SIZE)
    filled = masks.flatten(1).any(1)
    assert filled.any()
    torch.testing.assert_close(results.bboxes[filled], mask2bbox(masks[filled]))
    assert (results.scores.diff() <= 0).all()


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_boxes_around_no_masks(mask_format):
    results = predictions_of(
        detector(test_cfg=dict(score_thr=0.99, mask_format=mask_format, mask_box_nms=MASK_BOX_NMS)), batch([SIZE], [1])
    )
    assert len(results) == 0
    assert results.masks.shape == (0, *SIZE)
    assert mask_bboxes(results.masks).shape == (0, 4)


@pytest.mark.parametrize('mask_thr', [0.53, 0.7, 0.9])
def test_certainty_is_the_mean_probability_inside_the_mask(mask_thr):
    model = detector()
    position = model.bbox_head.position((60, 80), 8).detach()
    pixel_embed = torch.cat([position, torch.zeros(14, 60, 80)])
    bboxes = torch.tensor([[100.0, 50.0, 500.0, 400.0], [0.0, 0.0, 80.0, 240.0], [10.0, 10.0, 10.0, 10.0]])
    # Inscribed ellipses: the probability falls as 0.5 ** (r ** 2), which is integrated up to where it is mask_thr.
    center, half = (bboxes[:, :2] + bboxes[:, 2:]) / 200, (bboxes[:, 2:] - bboxes[:, :2]) / 200
    results = InstanceData(
        bboxes=bboxes,
        proposal_embed=torch.nn.functional.pad(center, (0, 14)),
        proposal_margin=torch.nn.functional.pad(math.log(2) / half.clamp(min=0.01).square(), (0, 14)),
    )
    results.proposal_embed[2] += 10
    certainties = mask_certainties(pixel_embed, results, 8, mask_thr)
    expected = (1 - mask_thr) / -math.log(mask_thr)
    assert certainties[:2].tolist() == pytest.approx([expected] * 2, rel=0.02)
    assert certainties[2] == 0


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_scores_of_masks(mask_format):
    test_cfg = dict(score_thr=0.0, max_per_img=10, mask_format=mask_format, keep_embed=True)
    plain = predictions_of(detector(test_cfg=test_cfg), batch([SIZE], [3]))
    scored = predictions_of(detector(test_cfg=dict(test_cfg, score_masks=True)), batch([SIZE], [3]))
    certainties = mask_certainties(plain.pixel_embed, plain, 8, 0.53)
    scores, order = (plain.scores * certainties).sort(descending=True, stable=True)
    torch.testing.assert_close(scored.scores, scores)
    assert scored.scores.max() > 0
    assert torch.equal(scored.bboxes, plain.bboxes[order])
    np.testing.assert_array_equal(scored.masks.numpy(), plain.masks.numpy()[order])


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_scores_of_no_masks(mask_format):
    test_cfg = dict(score_thr=0.99, mask_format=mask_format, score_masks=True)
    results = predictions_of(detector(test_cfg=test_cfg), batch([SIZE], [1]))
    assert len(results) == 0
    assert results.masks.shape == (0, *SIZE)


@pytest.mark.parametrize('counts', [[3, 2], [2, 0], [0, 0]], ids=['both', 'one image empty', 'batch empty'])
def test_all_options_train_together(counts):
    model = detector(**ALL).train()
    losses = losses_of(model, batch([SIZE, SIZE], counts))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_kept_embeddings_make_the_masks_with_all_options():
    results = predictions_of(detector(**ALL), batch([SIZE], [3]))
    shapes = dict(stride=4, img_shape=SIZE, ori_shape=SIZE, upscale=1, resize_prob=True)
    masks = instance_masks(
        results.pixel_embed, results.proposal_embed, results.proposal_margin, results.bboxes, **shapes
    )
    assert torch.equal(masks, results.masks)
    assert masks.any()


def test_one_view_is_that_view_with_all_options():
    model = detector(**ALL).eval()
    nms = dict(type='nms', iou_threshold=0.6, offset=1)
    tta = MODELS.build(dict(type='EmbedMaskTTAModel', module=model, tta_cfg=dict(nms=nms, max_per_img=10)))
    data = batch([SIZE], [3])
    data['data_samples'][0].set_metainfo(dict(flip=False, flip_direction=None))
    with torch.no_grad():
        (view,) = model.test_step(data)
        (merged,) = tta.merge_preds([[copy.deepcopy(view)]])
    assert torch.equal(merged.pred_instances.masks, view.pred_instances.masks)
    assert torch.equal(merged.pred_instances.scores, view.pred_instances.scores)


def test_resized_probabilities_make_masks_no_smaller():
    masks = []
    for resize_prob in (False, True):
        settings = dict(resize_prob=resize_prob, mask_thr=0.4, score_thr=0.0, max_per_img=20)
        masks.append(predictions_of(detector(test_cfg=settings), batch([SIZE], [3])).masks)
    assert (masks[1] | ~masks[0]).all()
    assert masks[1].sum() > masks[0].sum()


@pytest.mark.parametrize(
    'part, setting, message',
    [
        ('bbox_head', dict(num_mask_locations=0), 'num_mask_locations must be at least 1, got 0'),
        ('bbox_head', dict(initial_distance=-1), 'initial_distance must be at least 0, got -1'),
        ('mask_head', dict(num_levels=0), 'num_levels must be at least 1, got 0'),
        ('mask_head', dict(mask_target='soft'), r"mask_target must be one of \['binary', 'coverage'\], got 'soft'"),
        ('test_cfg', dict(mask_box_weight=1.5), 'mask_box_weight must be from 0 to 1, got 1.5'),
        (
            'test_cfg',
            dict(mask_box_nms=dict(type='sof_nms')),
            "mask_box_nms must be a config of mmcv's nms or soft_nms",
        ),
        ('test_cfg', dict(mask_box_nms=dict(type='nms', iou_threshold=0.5, method='linear')), 'needs _delete_=True'),
        (
            'test_cfg',
            dict(mask_box_nms=dict(type='soft_nms', method='gauss')),
            "'method': 'gauss'}, which ends in AssertionError",
        ),
    ],
)
def test_impossible_options_are_named(part, setting, message):
    with pytest.raises(ValueError, match=message):
        detector(**{part: setting})


def test_losses_that_need_binary_masks_say_so():
    with pytest.raises(TypeError, match="use DiceCrossEntropyLoss, or set mask_target='binary' in mask_head"):
        losses_of(detector(mask_head=dict(mask_target='coverage')).train(), batch([SIZE], [2]))
