"""The shapes as a dataset: the same for all, COCO's format, sizes far apart, and masks that share no pixel."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from embedmask_mmdet.datasets import shapes

ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools' / 'dataset_converters' / 'make_shapes.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'shapes'
    shapes.write_dataset(out, 40, 5, 256, 0)
    return out


@pytest.fixture(scope='module')
def train(folder):
    return COCO(folder / 'annotations' / 'train.json')


def read_all(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


def visible_masks(coco, image_id):
    return np.stack([coco.annToMask(annotation) for annotation in coco.imgToAnns[image_id]])


def test_same_seed_same_files(tmp_path):
    for name, seed in (('one', 3), ('two', 3), ('other', 4)):
        shapes.write_dataset(tmp_path / name, 2, 1, 96, seed)
    assert read_all(tmp_path / 'one') == read_all(tmp_path / 'two')
    assert read_all(tmp_path / 'one') != read_all(tmp_path / 'other')


def test_an_image_does_not_depend_on_how_many_there_are(folder, tmp_path):
    shapes.write_dataset(tmp_path / 'fewer', 1, 1, 256, 0)
    for name in ('train_0000.png', 'test_0000.png'):
        assert (tmp_path / 'fewer/images' / name).read_bytes() == (folder / 'images' / name).read_bytes()


def test_images_are_listed_and_differ(folder, train):
    names = [image['file_name'] for image in train.imgs.values()]
    images = [cv2.imread(str(folder / 'images' / name)) for name in names]
    assert len(names) == 40 and len(COCO(folder / 'annotations' / 'test.json').imgs) == 5
    assert all(image.shape == (256, 256, 3) for image in images)
    assert len({image.tobytes() for image in images}) == 40
    assert np.std(images[0]) > 10


def test_annotations_agree_with_their_masks(train):
    assert train.anns
    for annotation in train.anns.values():
        mask = train.annToMask(annotation)
        assert mask.shape == (256, 256)
        assert annotation['area'] == mask.sum() >= shapes.MIN_AREA
        assert annotation['bbox'] == mask_utils.toBbox(annotation['segmentation']).tolist()
    assert {annotation['category_id'] for annotation in train.anns.values()} == set(train.cats)


def test_masks_are_what_is_visible(train):
    touching = 0
    for image_id in train.imgs:
        masks = visible_masks(train, image_id)
        assert masks.sum(0).max() == 1
        grown = np.stack([cv2.dilate(mask, np.ones((3, 3), np.uint8)) for mask in masks])
        touching += grown.sum(0).max() > 1
    assert touching > len(train.imgs) / 2


def test_sizes_span_a_factor_of_30(train):
    masks = [
        mask for index in range(400) for mask in shapes.draw_instances(np.random.default_rng([0, 0, index]), 256)[0]
    ]
    assert (masks[0] == train.annToMask(train.anns[1])).all()
    # By their larger side, which the border and other shapes make smaller.
    sizes = [max(cv2.boundingRect(mask)[2:]) for mask in masks]
    assert max(sizes) > 200 and min(sizes) < 8
    assert 30 < np.median(sizes) < 60


def test_many_outlines_are_concave(train):
    filled = [annotation['area'] / np.prod(annotation['bbox'][2:]) for annotation in train.anns.values()]
    assert np.mean(np.array(filled) < 0.5) > 0.3


@pytest.mark.parametrize('name', shapes.SHAPES)
def test_each_shape_fills_its_box(name):
    rng = np.random.default_rng(0)
    for size in (8, 60.5, 240):
        shape = shapes.fill_contours(rng, shapes.SHAPES[name](rng), size)
        x, y, width, height = cv2.boundingRect(shape)
        # The tips of the thinnest do not cover half a pixel.
        assert (x, y) <= (1, 1)
        assert max(width, height) == pytest.approx(size, abs=3)


def test_a_ring_has_a_hole_and_a_star_is_concave():
    rng = np.random.default_rng(0)
    ring = shapes.fill_contours(rng, shapes.ring(rng), 100)
    assert ring[50, 50] == 0 and ring.any()
    star = shapes.fill_contours(rng, shapes.star(rng), 100)
    (outline,), _ = cv2.findContours(star, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    assert cv2.contourArea(outline) < 0.8 * cv2.contourArea(cv2.convexHull(outline))


def run(*arguments, cwd):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_command_line_writes_once(tmp_path):
    arguments = ('--images', 2, 1, '--size', 64, '--seed', 7)
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = read_all(tmp_path / 'data' / 'shapes')
    assert {path.name for path in written} == {
        *('train_0000.png', 'train_0001.png', 'test_0000.png', 'train.json', 'test.json')
    }
    assert 'exists already' in run(*arguments, cwd=tmp_path).stdout
    assert read_all(tmp_path / 'data' / 'shapes') == written


@pytest.mark.parametrize(
    'arguments, message', [(('--images', 0, 1), '--images'), (('--size', 16), '--size must be at least 32')]
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode != 0 and message in result.stderr and 'Traceback' not in result.stderr
    assert not list(tmp_path.iterdir())
