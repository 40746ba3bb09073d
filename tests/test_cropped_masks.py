"""Masks inside the boxes around them are, bit by bit, MMDetection's bitmaps, after every step of every pipeline."""

import copy
import json
import pickle
import random

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import DATASETS, TRANSFORMS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from embedmask_mmdet.cropped_masks import CroppedMasks
from embedmask_mmdet.run_lengths import decode_crops
from embedmask_mmdet.runtime.masks import bound
from embedmask_mmdet.targets import inside_masks, mask_coverage, mask_targets
from tests.builders import ROOT, batch, compute_losses, plus_model_cfg, tiny_detector, tiny_model_cfg

HEIGHT, WIDTH = 150, 200
CONFIGS = [
    'embedmask_r50_1x_coco',
    'embedmask_r18_light-ms-3x_coco',
    'embedmask_swin-t_ms-crop-3x_coco',
    'embedmask_own-data',
    'embedmask_r18_nuclei',
]
PARTS = ('none', 'all', 'noise', 'run', 'pixel')


@st.composite
def bitmaps(draw, max_side=50):
    """Draw uint8 `(N, h, w)`: noise inside boxes, complete and empty masks, runs down columns, and pixels."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = np.zeros((draw(st.integers(0, 4)), height, width), np.uint8)
    for mask in masks:
        part = draw(st.sampled_from(PARTS))
        (y1, y2), (x1, x2) = (np.sort(rng.integers(0, size + 1, 2)) for size in mask.shape)
        if part == 'all':
            mask[:] = 1
        elif part == 'noise':
            mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.4
        elif part == 'run':
            first, last = np.sort(rng.integers(0, mask.size + 1, 2))
            mask.T.flat[first:last] = 1
        elif part == 'pixel':
            mask[rng.integers(height), rng.integers(width)] = 1
    return masks


def crop_bitmaps(masks):
    """Make the same masks of `BitmapMasks` or an array."""
    bitmaps = np.asarray(masks.masks if isinstance(masks, BitmapMasks) else masks)
    return CroppedMasks.from_crops(map(bound, bitmaps), *bitmaps.shape[1:])


def draw_step(data, masks):
    """Draw a method of masks and its arguments."""
    side = st.integers(1, 70)
    corner = st.tuples(st.integers(-5, masks.width - 1), st.integers(-5, masks.height - 1))
    name, *arguments = data.draw(
        st.one_of(
            st.tuples(st.just('resize'), st.tuples(side, side), st.sampled_from(['nearest', 'nearest', 'bilinear'])),
            st.tuples(
                st.just('rescale'), st.one_of(st.floats(0.5, 2.0), st.tuples(st.integers(70, 80), st.integers(75, 90)))
            ),
            st.tuples(st.just('flip'), st.sampled_from(['horizontal', 'vertical', 'diagonal'])),
            st.tuples(st.just('crop'), st.tuples(corner, st.integers(0, 70), st.integers(0, 70))),
            st.tuples(st.just('pad'), st.tuples(side, side), st.sampled_from([0, 0, 1])),
            st.tuples(st.just('expand'), st.integers(0, 9), st.integers(0, 9)),
            st.tuples(st.just('rotate'), st.floats(-90, 90)),
            st.tuples(st.just('__getitem__'), st.lists(st.integers(0, len(masks) - 1)) if len(masks) else st.just([])),
        )
    )
    size = (masks.height, masks.width)
    if name == 'crop':
        (((x, y), width, height),) = arguments
        return name, (np.array([x, y, max(x, 0) + width, max(y, 0) + height]),)
    if name == 'pad':
        added, value = arguments
        return name, (tuple(old + new for old, new in zip(size, added)), value)
    if name == 'expand':
        top, left = arguments
        return name, (masks.height + top + 3, masks.width + left + 2, top, left)
    if name == 'rotate':
        return name, (size, *arguments)
    if name == '__getitem__':
        return name, (np.array(*arguments, dtype=int),)
    return name, tuple(arguments)


def assert_equal(actual, expected):
    # A copy, so that the masks stay as they are for the next step.
    copied = pickle.loads(pickle.dumps(actual))
    assert (len(actual), actual.height, actual.width) == (len(expected), expected.height, expected.width)
    assert copied.to_ndarray().dtype == expected.to_ndarray().dtype == np.uint8
    assert np.array_equal(copied.to_ndarray(), expected.to_ndarray())
    assert np.array_equal(actual.areas, expected.areas) and actual.areas.dtype == expected.areas.dtype
    assert torch.equal(actual.get_bboxes('hbox').tensor, expected.get_bboxes('hbox').tensor)


@given(st.data(), bitmaps())
@settings(max_examples=100, deadline=None)
def test_any_order_of_steps_gives_the_bitmaps(data, masks):
    expected = BitmapMasks(masks, *masks.shape[1:])
    actual = crop_bitmaps(masks)
    assert_equal(actual, expected)
    for _ in range(data.draw(st.integers(1, 5))):
        name, arguments = draw_step(data, expected)
        expected, actual = getattr(expected, name)(*arguments), getattr(actual, name)(*arguments)
        assert_equal(actual, expected)


@given(bitmaps(), st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=40, deadline=None)
def test_resized_masks_of_large_images_are_the_bitmaps(masks, height, width):
    masks = np.pad(masks, ((0, 0), (0, 400), (700, 0)))
    expected = BitmapMasks(masks, *masks.shape[1:]).resize((height, width))
    assert np.array_equal(crop_bitmaps(masks).resize((height, width)).masks, expected.masks)


@given(bitmaps(max_side=20), st.booleans())
@settings(max_examples=100, deadline=None)
def test_run_lengths_are_decoded_inside_boxes(masks, as_text):
    height, width = masks.shape[1:]
    rles = [pycocotools.mask.encode(np.asfortranarray(mask)) for mask in masks]
    if as_text:
        rles = [dict(rle, counts=rle['counts'].decode()) for rle in rles]
    crops = decode_crops(rles, height, width)
    assert np.array_equal(CroppedMasks.from_crops(crops, height, width).masks, masks)
    assert [crop.bitmap.shape[1] for crop in crops] == [bound(mask).bitmap.shape[1] for mask in masks]


@given(bitmaps(), st.integers(1, 9), st.tuples(st.integers(1, 12), st.integers(1, 12)))
@settings(max_examples=100, deadline=None)
def test_targets_are_those_of_the_bitmaps(masks, stride, grid):
    expected, actual = BitmapMasks(masks, *masks.shape[1:]), crop_bitmaps(masks)
    for make in (mask_targets, mask_coverage):
        targets = make(actual, grid, stride)
        assert targets.dtype == make(expected, grid, stride).dtype
        assert torch.equal(targets, make(expected, grid, stride))
    points = torch.rand(40, 2) * 60 - 5
    assert torch.equal(inside_masks(actual, points), inside_masks(expected, points))


@pytest.mark.parametrize('model_cfg', [tiny_model_cfg, plus_model_cfg])
def test_losses_are_those_of_the_bitmaps(model_cfg):
    model = tiny_detector(model_cfg())
    data = batch([(64, 96), (96, 64)], [3, 0])
    expected = compute_losses(model, data)
    for data_sample in data['data_samples']:
        data_sample.gt_instances.masks = crop_bitmaps(data_sample.gt_instances.masks)
    assert compute_losses(model, data) == expected


def draw_outline(rng):
    """Draw the corners of a star, with decimals of COCO, that may reach beyond the image."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radii = rng.uniform(4, 25) * rng.uniform(0.5, 1, 12)
    center = rng.uniform(0, (WIDTH, HEIGHT))
    corners = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return corners.round(1).ravel().tolist()


def draw_masks(rng):
    """Draw masks of all kinds: outlines, also of several parts or too short, and run lengths."""
    for index in range(12):
        outlines = [draw_outline(rng) for _ in range(1 + index % 3)]
        rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(outlines, HEIGHT, WIDTH))
        if index % 4 == 1:
            yield dict(size=[HEIGHT, WIDTH], counts=rle['counts'].decode())
        elif index % 4 == 2:
            pixels = pycocotools.mask.decode(rle).ravel('F')
            edges = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
            yield dict(size=[HEIGHT, WIDTH], counts=np.diff([0, *edges, pixels.size]).tolist())
        else:
            yield [*outlines, outlines[0][:4]] if index % 4 == 3 else outlines


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A dataset of one class, with masks of all kinds."""
    folder, rng = tmp_path_factory.mktemp('kinds'), np.random.default_rng(0)
    images, annotations = [], []
    for image_id in (1, 2, 3):
        cv2.imwrite(str(folder / f'{image_id}.png'), rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
        images.append(dict(id=image_id, file_name=f'{image_id}.png', height=HEIGHT, width=WIDTH))
        for index, mask in enumerate(draw_masks(rng)):
            box = [*rng.uniform(0, (WIDTH - 60, HEIGHT - 60)), *rng.uniform(5, 60, 2)]
            common = dict(id=len(annotations) + 1, image_id=image_id, category_id=1, iscrowd=int(index == 5))
            annotations.append(dict(common, bbox=box, area=box[2] * box[3], segmentation=mask))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing')])
    (folder / 'annotations.json').write_text(json.dumps(content))
    return folder


def build_dataset(folder, pipeline, **options):
    init_default_scope('mmdet')
    common = dict(type='CocoDataset', data_root=str(folder), ann_file='annotations.json', data_prefix=dict(img=''))
    return DATASETS.build(dict(**common, metainfo=dict(classes=('thing',)), pipeline=pipeline, **options))


def replace_type(step, old, new):
    return dict(step, type=new) if step['type'] == old else step


def load_both(pipeline, build):
    """Yield images as a pipeline loads them with `EmbedMaskLoadAnnotations`, and with `LoadAnnotations`."""
    both = []
    for kind in ('EmbedMaskLoadAnnotations', 'LoadAnnotations'):
        dataset = build([replace_type(step, 'EmbedMaskLoadAnnotations', kind) for step in pipeline])
        np.random.seed(0)
        random.seed(0)
        both.append([dataset[index] for index in (0, 1, 2)])
    return zip(*both)


def assert_same_sample(actual, expected):
    assert torch.equal(actual['inputs'], expected['inputs'])
    for kind in ('gt_instances', 'ignored_instances'):
        ours, theirs = (getattr(sample['data_samples'], kind) for sample in (actual, expected))
        assert torch.equal(ours.bboxes.tensor, theirs.bboxes.tensor) and torch.equal(ours.labels, theirs.labels)
        assert_equal(ours.masks, theirs.masks)
    assert len(expected['data_samples'].gt_instances)


@pytest.mark.parametrize('config', CONFIGS)
def test_our_pipelines_load_what_those_of_mmdetection_load(folder, config):
    pipeline = Config.fromfile(ROOT / 'configs' / f'{config}.py').train_pipeline
    assert any(step['type'] == 'EmbedMaskLoadAnnotations' for step in pipeline)
    for actual, expected in load_both(pipeline, lambda steps: build_dataset(folder, steps)):
        assert_same_sample(actual, expected)


LOAD = [dict(type='LoadImageFromFile'), dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True)]
RESIZE = dict(type='Resize', scale=(130, 110), keep_ratio=True)
OTHERS = {
    'pad': [RESIZE, dict(type='Pad', size_divisor=32)],
    'pad masks with 1': [dict(type='Pad', size=(220, 230), pad_val=dict(img=0, masks=1))],
    'expand': [dict(type='Expand'), RESIZE],
    'crop to objects': [dict(type='MinIoURandomCrop'), RESIZE],
    'relative crop': [dict(type='RandomCrop', crop_size=(0.3, 0.3), crop_type='relative_range'), RESIZE],
    'erase': [
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomErasing', n_patches=(2, 4), ratio=(0.1, 0.3)),
        RESIZE,
    ],
    'turn and shift': [RESIZE, *(dict(type=kind, prob=1.0) for kind in ('Rotate', 'ShearX', 'TranslateY'))],
    'mosaic': [
        dict(type='CachedMosaic', img_scale=(130, 110), random_pop=False, max_cached_images=6),
        dict(type='RandomResize', scale=(200, 200), ratio_range=(0.5, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(120, 120), recompute_bbox=True, allow_negative_crop=True),
        dict(type='Pad', size=(120, 120)),
        dict(type='CachedMixUp', img_scale=(120, 120), random_pop=False, max_cached_images=6),
    ],
}


@pytest.mark.parametrize('steps', OTHERS.values(), ids=OTHERS.keys())
def test_other_pipelines_load_what_those_of_mmdetection_load(folder, steps):
    pipeline = [*LOAD, *steps, dict(type='PackDetInputs', meta_keys=())]
    for actual, expected in load_both(pipeline, lambda steps: build_dataset(folder, steps)):
        assert_same_sample(actual, expected)


def test_copies_of_objects_are_pasted(folder):
    def build(steps):
        inner = dict(
            type='CocoDataset',
            data_root=str(folder),
            ann_file='annotations.json',
            data_prefix=dict(img=''),
            metainfo=dict(classes=('thing',)),
            pipeline=steps,
        )
        paste = [dict(type='CopyPaste', max_num_pasted=9), dict(type='PackDetInputs', meta_keys=())]
        return DATASETS.build(dict(type='MultiImageMixDataset', dataset=inner, pipeline=paste))

    for actual, expected in load_both([*LOAD, RESIZE], build):
        assert_same_sample(actual, expected)


def test_masks_come_from_workers_without_bitmaps(folder):
    dataset = build_dataset(folder, [*LOAD, RESIZE, dict(type='PackDetInputs', meta_keys=())])
    (loaded,) = DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=pseudo_collate)
    for index, data_sample in enumerate(loaded['data_samples']):
        masks = data_sample.gt_instances.masks
        assert len(pickle.dumps(masks)) < masks.masks.nbytes / 3
        assert np.array_equal(masks.masks, dataset[index]['data_samples'].gt_instances.masks.masks)


def load_annotations(kind, **instance):
    init_default_scope('mmdet')
    results = dict(instances=[dict(bbox=[0, 0, 1, 1], bbox_label=0, ignore_flag=0, **instance)], ori_shape=(4, 5))
    return TRANSFORMS.build(dict(type=kind, with_bbox=True, with_mask=True))(results)


@pytest.mark.parametrize(
    'mask',
    [
        [[3.0, 4.0, 5.0, 6.0]],
        dict(counts='`0'),
        dict(size=[4, 5], counts=[0, 0, 2, 4, 14]),
        dict(size=[4, 4], counts='`0'),
        dict(size=[2, 10], counts='2b0'),
    ],
    ids=str,
)
def test_unusual_masks_do_what_they_do_in_mmdetection(mask):
    results = []
    for kind in ('EmbedMaskLoadAnnotations', 'LoadAnnotations'):
        try:
            results.append(load_annotations(kind, mask=copy.copy(mask))['gt_masks'].masks.tolist())
        except (AssertionError, ValueError) as error:
            results.append(repr(error))
    assert results[0] == results[1]


@pytest.mark.parametrize('counts', ['0P', 'Oe0', '04'])
def test_run_lengths_of_another_image_are_refused(counts):
    """An unfinished number, a negative one, and too few pixels."""
    with pytest.raises(ValueError, match='run length'):
        decode_crops([dict(size=[4, 5], counts=counts)], 4, 5)


def test_an_image_without_instances_has_no_masks():
    init_default_scope('mmdet')
    load = TRANSFORMS.build(dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True))
    masks = load(dict(instances=[], ori_shape=(4, 5)))['gt_masks']
    assert masks.resize((8, 10)).flip().masks.shape == (0, 8, 10) and masks.get_bboxes('hbox').shape == (0, 4)


def test_masks_take_what_is_written_into_their_bitmaps():
    masks = crop_bitmaps(np.eye(6, dtype=np.uint8)[None])
    masks.masks[0, :3] = 0
    assert masks.areas.tolist() == [3] and masks.flip('vertical').masks[0, :3].sum() == 3
    masks.masks = masks.masks * 0
    assert masks.areas.tolist() == [0] and not masks.resize((9, 9)).masks.any()


def test_other_interpolation_is_that_of_the_bitmaps():
    masks = np.kron(np.eye(3, dtype=np.uint8), np.ones((3, 3), np.uint8))[None]
    expected = BitmapMasks(masks, 9, 9).resize((14, 13), 'bilinear')
    assert not np.array_equal(expected.masks, BitmapMasks(masks, 9, 9).resize((14, 13)).masks)
    assert_equal(crop_bitmaps(masks).resize((14, 13), 'bilinear'), expected)


def test_masks_are_concatenated():
    ones, zeros = np.ones((2, 4, 5), np.uint8), np.zeros((1, 4, 5), np.uint8)
    joined = CroppedMasks.cat([crop_bitmaps(ones), crop_bitmaps(zeros)])
    assert isinstance(joined, CroppedMasks) and np.array_equal(joined.masks, np.concatenate([ones, zeros]))
    assert np.array_equal(CroppedMasks.cat([joined, BitmapMasks(ones, 4, 5)]).masks[3:], ones)
    assert repr(joined) == 'CroppedMasks(num_masks=3, height=4, width=5)'
