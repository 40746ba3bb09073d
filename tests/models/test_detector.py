"""What the detector makes of ordinary, empty and odd input, and which settings it refuses."""

import copy

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from embedmask_mmdet.ops import instance_masks
from embedmask_mmdet.structures import RLEMasks
from tests.tiny import batch, tiny_detector, tiny_model_cfg

SIZE = (96, 128)


def losses_of(model, data):
    data = model.data_preprocessor(copy.deepcopy(data), training=True)
    return model.loss(data['inputs'], data['data_samples'])


def predictions_of(model, data):
    model.eval()
    with torch.no_grad():
        return [sample.pred_instances for sample in model.test_step(copy.deepcopy(data))]


@pytest.mark.parametrize('counts', [[3, 2], [2, 0], [0, 0]], ids=['both', 'one image empty', 'batch empty'])
@pytest.mark.parametrize('fix_margin', [False, True])
def test_every_parameter_gets_a_gradient(counts, fix_margin):
    cfg = tiny_model_cfg()
    cfg.bbox_head.fix_margin = fix_margin
    model = tiny_detector(cfg).train()
    losses = losses_of(model, batch([SIZE, SIZE], counts))
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_centerness', 'loss_mask'}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


def test_initial_margin_and_biases():
    model = tiny_detector()
    _, _, _, _, margins = model.bbox_head([torch.zeros(1, 32, 4, 4)] * 5)
    assert float(margins[0].mean()) == pytest.approx(0.1733, abs=1e-4)
    assert float(model.mask_head.conv_embed.weight.std()) == pytest.approx(0.01, rel=0.2)
    assert not model.mask_head.conv_embed.bias.any()


def test_fixed_margin_is_the_initial_one():
    cfg = tiny_model_cfg()
    cfg.bbox_head.fix_margin = True
    margins = tiny_detector(cfg).bbox_head([torch.randn(1, 32, 4, 4)] * 5)[4]
    torch.testing.assert_close(margins[0], torch.full_like(margins[0], -np.log(0.5) / 4))


def test_instance_without_any_positive_location_costs_nothing():
    data = batch([SIZE], [1])
    instances = data['data_samples'][0].gt_instances
    instances.masks.masks[:] = 0
    losses = losses_of(tiny_detector().train(), data)
    assert losses['loss_mask'] == 0
    assert losses['loss_bbox'] == 0


def test_padding_of_the_box_limits_the_loss():
    data = batch([SIZE], [3])
    losses = {}
    for padding in (-1, 0, 1000):
        cfg = tiny_model_cfg()
        cfg.mask_head.box_padding = padding
        losses[padding] = float(losses_of(tiny_detector(cfg).train(), data)['loss_mask'])
    assert losses[0] < losses[-1]
    assert losses[1000] == pytest.approx(losses[-1], rel=1e-6)


@pytest.mark.parametrize('sizes', [[SIZE], [(1, 1)], [(37, 53), (61, 29)], [(1, 200)]])
@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_detections_fit_their_image(sizes, mask_format):
    model = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=5, mask_format=mask_format))
    data = batch(sizes, [1] * len(sizes))
    for size, results in zip(sizes, predictions_of(model, data)):
        assert set(results.keys()) == {'bboxes', 'scores', 'labels', 'masks'}
        assert results.masks.shape == (len(results), *size)
        assert results.scores.tolist() == sorted(results.scores.tolist(), reverse=True)


def test_masks_are_the_same_in_both_formats():
    by_format = {}
    for mask_format in ('bitmap', 'rle'):
        model = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=20, mask_format=mask_format))
        by_format[mask_format] = predictions_of(model, batch([SIZE], [3]))[0]
    assert isinstance(by_format['rle'].masks, RLEMasks)
    assert by_format['bitmap'].masks.any()
    np.testing.assert_array_equal(by_format['rle'].masks.numpy(), by_format['bitmap'].masks.numpy())


@pytest.mark.parametrize('nms_pre', [3, 1000, -1])
@pytest.mark.parametrize('score_thr', [0.0, 0.4])
def test_classes_decide_what_counts_and_centerness_what_is_kept(nms_pre, score_thr):
    head = tiny_detector().bbox_head
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(channels, 4, 5, generator=generator) for channels in (2, 4, 1, 16, 16)]
    points = head.prior_generator.single_level_grid_priors((4, 5), 0, device='cpu')
    cfg = ConfigDict(score_thr=score_thr, nms_pre=nms_pre)
    actual = head._candidates_single(maps, points, dict(img_shape=(32, 40)), cfg)
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


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_no_detections(mask_format):
    model = tiny_detector(tiny_model_cfg(score_thr=0.99, mask_format=mask_format))
    (results,) = predictions_of(model, batch([SIZE], [1]))
    assert len(results) == 0
    assert results.masks.shape == (0, *SIZE)


def test_masks_and_boxes_follow_the_original_image():
    model = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=10))
    data = batch([SIZE], [2])
    (at_input,) = predictions_of(model, data)
    data['data_samples'][0].set_metainfo(dict(ori_shape=(192, 256), scale_factor=(0.5, 0.5)))
    (at_original,) = predictions_of(model, data)
    torch.testing.assert_close(at_original.bboxes, at_input.bboxes * 2)
    assert at_original.masks.shape == (10, 192, 256)


def test_results_do_not_depend_on_the_batch():
    model = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=10))
    data = batch([SIZE, SIZE], [2, 2])
    together = predictions_of(model, data)
    for i, expected in enumerate(together):
        (alone,) = predictions_of(model, {key: values[i : i + 1] for key, values in data.items()})
        torch.testing.assert_close(alone.scores, expected.scores)
        assert (alone.masks != expected.masks).float().mean() < 1e-4


def test_tensor_mode_runs_the_network_alone():
    outs = tiny_detector().eval()(torch.zeros(1, 3, 64, 64), mode='tensor')
    assert outs[-1].shape == (1, 16, 8, 8)


def test_deformable_last_convolutions_start_as_ordinary_ones():
    cfg = tiny_model_cfg()
    cfg.bbox_head.dcn_on_last_conv = cfg.mask_head.dcn_on_last_conv = True
    model = tiny_detector(cfg).train()
    offsets = [m.conv_offset for m in model.modules() if hasattr(m, 'conv_offset')]
    assert len(offsets) == 3
    assert not any(conv.weight.any() for conv in offsets)
    sum(losses_of(model, batch([SIZE], [2])).values()).backward()


def test_locations_are_one_parameter():
    model = tiny_detector()
    assert [name for name, _ in model.named_parameters() if 'position' in name] == ['bbox_head.position.scale']
    clone = copy.deepcopy(model)
    assert clone.mask_head._position[0] is clone.bbox_head.position


@pytest.mark.parametrize(
    'part, setting, message',
    [
        ('test_cfg', dict(mask_thr=0.0), 'mask_thr is a probability'),
        ('test_cfg', dict(mask_thr=1.5), 'mask_thr is a probability'),
        ('test_cfg', dict(mask_format='polygon'), r"mask_format must be one of \['bitmap', 'rle'\], got 'polygon'"),
        ('mask_head', dict(embed_dim=8), 'same embed_dim, got 16 in bbox_head and 8 in mask_head'),
        ('mask_head', dict(mask_scale=3), 'mask_scale must divide stride 8'),
        ('mask_head', dict(stride=6), 'stride must be that of the finest level, or of one that is 2, 4'),
        ('mask_head', dict(stride=16), 'stride must be that of the finest level, or of one that is 2, 4'),
        ('bbox_head', dict(embed_dim=1), 'embed_dim must be at least 2'),
        ('bbox_head', dict(prior_margin=0), 'prior_margin must be above 0'),
        ('bbox_head', dict(coord_scale=-1), 'coord_scale must be above 0'),
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
        losses_of(tiny_detector(cfg).train(), batch([SIZE], [2]))


@pytest.mark.parametrize('sample_in_mask', [True, False])
def test_data_without_masks_are_named(sample_in_mask):
    data = batch([SIZE], [2])
    del data['data_samples'][0].gt_instances.masks
    cfg = tiny_model_cfg()
    cfg.bbox_head.sample_in_mask = sample_in_mask
    with pytest.raises(ValueError, match='with_mask=True'):
        losses_of(tiny_detector(cfg).train(), data)


def test_checkpoint_of_another_embedding_dimension_is_refused():
    cfg = tiny_model_cfg()
    cfg.bbox_head.embed_dim = cfg.mask_head.embed_dim = 8
    state_dict = tiny_detector(cfg).state_dict()
    with pytest.raises(ValueError, match='the checkpoint has embed_dim=8'):
        tiny_detector().load_state_dict(state_dict, strict=False)


def test_prediction_with_weights_of_another_model_is_refused():
    model = tiny_detector()
    model.load_state_dict({'backbone.conv1.weight': model.backbone.conv1.weight}, strict=False)
    with pytest.raises(RuntimeError, match='not one of this model: it lacks'):
        predictions_of(model, batch([SIZE], [1]))
    losses_of(model.train(), batch([SIZE], [1]))
    predictions_of(model, batch([SIZE], [1]))


def test_embeddings_are_kept_where_asked_for():
    (plain,), (kept,) = (
        predictions_of(tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=5, keep_embed=keep)), batch([SIZE], [3]))
        for keep in (False, True)
    )
    assert set(plain.keys()) == {'bboxes', 'scores', 'labels', 'masks'}
    assert kept.proposal_embed.shape == kept.proposal_margin.shape == (5, 16)
    assert kept.pixel_embed.shape == (16, SIZE[0] // 8, SIZE[1] // 8)
    masks = instance_masks(
        kept.pixel_embed,
        kept.proposal_embed,
        kept.proposal_margin,
        kept.bboxes,
        stride=8,
        img_shape=SIZE,
        ori_shape=SIZE,
    )
    assert torch.equal(masks, plain.masks)
    assert kept[:2].pixel_embed.shape == kept.pixel_embed.shape


def test_embed_reduce_factor_divides_the_features_of_embeddings():
    cfg = tiny_model_cfg()
    feats = [torch.randn(1, 32, 4, 4)] * 5
    detectors = [tiny_detector(cfg)]
    cfg.bbox_head.embed_reduce_factor = cfg.mask_head.embed_reduce_factor = 4.0
    detectors.append(tiny_detector(cfg))
    for name, index in (('bbox_head', 3), ('mask_head', 0)):
        position = detectors[0].bbox_head.position((4, 4), 8)
        whole, part = (getattr(model, name)(feats)[index] for model in detectors)
        whole, part = (maps[0] if isinstance(maps, list) else maps for maps in (whole, part))
        torch.testing.assert_close(part[:, :2] - position, (whole[:, :2] - position) / 4)
        torch.testing.assert_close(part[:, 2:], whole[:, 2:] / 4)
