"""Thresholds for drawing: the best there are, whatever the detections, and found by the tool as a user calls it."""

import contextlib
import json
import re

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from embedmask_mmdet.analysis.thresholds import (
    DEFAULT_THRESHOLD,
    best_threshold,
    class_thresholds,
    load_thresholds,
    save_thresholds,
    thresholds_file,
)
from embedmask_mmdet.errors import InputError
from tests.builders import CLASSES, ROOT, tiny_cfg, tiny_detector, write_tiny_coco
from tests.scripts import run_script

TOOL = ROOT / 'tools' / 'analysis_tools' / 'score_thresholds.py'
SIZE = (64, 64)
scores = st.integers(0, 12).map(lambda number: number / 12)  # few enough to be equal at times


def f_measure(found, kept, wanted):
    precision, recall = found / max(kept, 1), found / max(wanted, 1)
    return 2 * precision * recall / max(precision + recall, 1e-12)


@given(st.lists(st.tuples(scores, st.booleans()), max_size=30), st.integers(0, 20))
def test_no_other_threshold_has_a_higher_f_measure(detections, missed):
    score = np.array([detection[0] for detection in detections])
    correct = np.array([detection[1] for detection in detections], dtype=bool)
    wanted = int(correct.sum()) + missed
    best = best_threshold(score, correct, wanted)
    if best is None:
        assert not correct.any()
        return
    by_hand = {t: f_measure(correct[score >= t].sum(), (score >= t).sum(), wanted) for t in set(score.tolist())}
    highest = max(by_hand.values())
    assert best.f_measure == pytest.approx(highest)
    assert best.threshold == max(t for t, value in by_hand.items() if value > highest - 1e-9)
    kept = score >= best.threshold
    assert best.precision == pytest.approx(correct[kept].mean())
    assert best.recall == pytest.approx(correct[kept].sum() / wanted)


def encode(box):
    mask = np.zeros(SIZE, np.uint8, order='F')
    x, y, width, height = box
    mask[y : y + height, x : x + width] = 1
    rle = pycocotools.mask.encode(mask)
    return dict(size=list(SIZE), counts=rle['counts'].decode())


def evaluate(boxes, detections, crowd=()):
    """Compare ``(image, category, box, score)`` with ``(image, category, box)`` as COCO does, in 2 images."""
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=i, height=SIZE[0], width=SIZE[1]) for i in (0, 1)],
        categories=[dict(id=3, name='cat'), dict(id=7, name='dog')],
        annotations=[
            dict(
                id=i, image_id=image, category_id=cat, segmentation=encode(box), area=box[2] * box[3], iscrowd=is_crowd
            )
            for i, (image, cat, box, is_crowd) in enumerate([(*b, 0) for b in boxes] + [(*b, 1) for b in crowd])
        ],
    )
    with contextlib.redirect_stdout(None):
        truth.createIndex()
        found = truth.loadRes(
            [
                dict(image_id=image, category_id=cat, segmentation=encode(box), score=score)
                for image, cat, box, score in detections
            ]
        )
        evaluation = COCOeval(truth, found, 'segm')
        evaluation.params.iouThrs = [0.5]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    return class_thresholds(evaluation, [3, 7])


# Rows of 8 pixels, so that boxes of one row overlap and those of others do not.
box = st.builds(lambda row, x: (x, 8 * row, 12, 8), st.integers(0, 3), st.integers(0, 8))
instance = st.tuples(st.integers(0, 1), st.sampled_from([3, 7]), box)


def count_correct(boxes, detections, cat):
    """Match by hand: each detection, best first, takes the free instance that it overlaps most, from IoU 0.5 on."""
    free = [(image, box) for image, category, box in boxes if category == cat]
    correct = 0
    for image, _, (x, y, width, _), _ in sorted(detections, key=lambda detection: -detection[3]):
        overlaps = [
            (max(0, width - abs(x - other[0])) if (image, y) == (at, other[1]) else 0, -i)
            for i, (at, other) in enumerate(free)
        ]
        pixels, i = max(overlaps, default=(0, 0))
        if pixels / (2 * width - pixels) >= 0.5:
            correct += 1
            free.pop(-i)
    return correct


@settings(deadline=None, max_examples=60)
@given(
    st.lists(instance, max_size=6, unique_by=lambda each: (each[0], each[1], each[2][1])),
    st.lists(st.tuples(instance, st.integers(1, 99)), min_size=1, max_size=12, unique_by=lambda each: each[1]),
)
def test_masks_are_counted_as_by_hand_at_every_threshold(boxes, found):
    detections = [(*detection, score / 100) for detection, score in found]
    for cat, best in zip([3, 7], evaluate(boxes, detections)):
        wanted = sum(category == cat for _, category, _ in boxes)
        assert best.instances == wanted
        own = [detection for detection in detections if detection[1] == cat]
        by_hand = {}
        for threshold in (detection[3] for detection in own):
            kept = [detection for detection in own if detection[3] >= threshold]
            by_hand[threshold] = f_measure(count_correct(boxes, kept, cat), len(kept), wanted)
        highest = max(by_hand.values(), default=0)
        if highest == 0:
            assert best.f_measure is None
        else:
            assert best.f_measure == pytest.approx(highest)
            assert best.threshold == max(t for t, value in by_hand.items() if value > highest - 1e-9)


def test_what_lies_in_a_crowd_region_does_not_count():
    cat, other = (0, 3, (0, 0, 12, 8)), (0, 3, (0, 40, 12, 8))
    in_crowd = [(0, 3, (x, 20, 6, 6), 0.8) for x in (2, 20, 40)]
    detections = [(*cat, 0.9), *in_crowd, (*other, 0.4), (1, 3, (0, 0, 12, 8), 0.2)]
    best = evaluate([cat, other], detections, crowd=[(0, 3, (0, 16, 60, 16))])[0]
    assert (best.threshold, best.f_measure, best.instances) == (0.4, 1.0, 2)


def test_class_without_a_correct_mask_gets_the_median_of_the_others():
    cat = (0, 3, (0, 0, 12, 8))
    best, fallback = evaluate([cat, (0, 7, (0, 40, 12, 8))], [(*cat, 0.65)])
    assert fallback == (best.threshold, None, None, None, 1) and best.threshold == 0.65
    wrong = evaluate([cat], [(1, 3, (0, 0, 12, 8), 0.9)])
    assert [each.threshold for each in wrong] == [DEFAULT_THRESHOLD] * 2


# The tool


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('thresholds')
    cfg = tiny_cfg(write_tiny_coco(folder / 'data'), folder / 'unused')
    cfg.dump(folder / 'tiny.py')
    torch.save(
        dict(state_dict=tiny_detector().state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), folder / 'a.pth'
    )
    return folder


@pytest.fixture
def run(folder):
    def run(*args):
        return run_script(TOOL, list(map(str, args)), folder)

    return run


@pytest.fixture(scope='module')
def results(folder):
    """All instances with scores from 0.9 down, each with a wrong mask of half its score."""
    annotations = json.loads((folder / 'data/annotations.json').read_text())['annotations']
    blank = pycocotools.mask.encode(np.zeros((96, 128), np.uint8, order='F'))['counts'].decode()
    found = []
    for i, annotation in enumerate(annotations):
        right = dict(image_id=annotation['image_id'], category_id=annotation['category_id'], score=0.9 - 0.01 * i)
        found.append({**right, 'segmentation': annotation['segmentation'], 'bbox': [0, 0, 1, 1]})
        found.append({**right, 'segmentation': dict(size=[96, 128], counts=blank), 'score': right['score'] / 2})
    path = folder / 'results.segm.json'
    path.write_text(json.dumps(found))
    return path


def test_results_found_before_give_thresholds_beside_the_checkpoint(folder, run, results):
    out = run('tiny.py', 'a.pth', '--results', results).stdout
    written = json.loads((folder / 'a.thresholds.json').read_text())
    found = json.loads(results.read_text())
    for label, name in enumerate(CLASSES):
        own = [mask['score'] for mask in found if mask['category_id'] == label + 1]
        best = written['classes'][name]
        assert best == dict(threshold=min(own[::2]), f_measure=1.0, precision=1.0, recall=1.0, instances=len(own) // 2)
        assert f'{name} ' in out
    assert 'written to a.thresholds.json' in out
    assert load_thresholds(thresholds_file(folder / 'a.pth'), CLASSES[::-1]) == [
        written['classes'][name]['threshold'] for name in CLASSES[::-1]
    ]


def test_validation_run_gives_thresholds_and_leaves_nothing_else(folder, run):
    before = set(folder.rglob('*'))
    result = run('tiny.py', 'a.pth', '--out', 'run.json', '--cfg-options', 'model.test_cfg.score_thr=0.0')
    assert result.code == 0, result.stderr
    assert set(folder.rglob('*')) - before == {folder / 'run.json'}
    assert list(json.loads((folder / 'run.json').read_text())['classes']) == list(CLASSES)


@pytest.mark.parametrize(
    'content, args, message',
    [
        (None, ['tiny.py', 'b.pth'], 'the checkpoint b.pth does not exist'),
        (None, ['other.py', 'a.pth'], 'the config other.py does not exist'),
        (None, ['tiny.py', 'a.pth', '--results', 'none.json'], 'none.json: No such file'),
        ('[{"image_id": 1}]', ['tiny.py', 'a.pth'], 'is not a list of masks'),
        ('[]', ['tiny.py', 'a.pth'], 'nothing was detected'),
        (
            json.dumps([dict(image_id=99, category_id=1, segmentation=encode((0, 0, 4, 4)), score=0.5)]),
            ['tiny.py', 'a.pth'],
            'has other images than',
        ),
        ('[]', ['tiny.py', 'a.pth', '--cfg-options', 'val_evaluator.type=LVISMetric'], 'val_evaluator is LVISMetric'),
        (
            None,
            ['tiny.py', 'a.pth', '--out', 'nowhere/a.json', '--results', 'results.segm.json'],
            'nowhere/a.json cannot be written: No such file',
        ),
    ],
)
def test_errors_are_one_line(folder, run, results, content, args, message):
    if content is not None:
        (folder / 'given.json').write_text(content)
        args = [*args, '--results', 'given.json']
    result = run(*args)
    assert result.code != 0
    (error,) = re.findall('^score_thresholds.py: error: .*', result.stderr, re.MULTILINE)
    assert message in error and 'Traceback' not in result.stderr


def test_files_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / 'a.thresholds.json'
    cat = best_threshold(np.array([0.5]), np.array([True]), 1)
    save_thresholds(path, {'cat': cat})
    assert load_thresholds(path, ['cat']) == [0.5]
    with pytest.raises(InputError, match='about other classes: it has cat, the checkpoint has dog'):
        load_thresholds(path, ['dog'])
    path.write_text('{"classes": ["cat"]}')
    with pytest.raises(InputError, match='contains no score thresholds'):
        load_thresholds(path, ['cat'])
    with pytest.raises(InputError, match='none.json cannot be read: No such file'):
        load_thresholds(tmp_path / 'none.json', ['cat'])
