"""The report: which mistakes it sees, what they cost, which labels it suspects, and the page as a browser gets it."""

import base64
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from pycocotools import mask as mask_utils

from embedmask_mmdet.analysis.report import charts, costs, crops, evaluation, statistics, suspicions
from embedmask_mmdet.analysis.report.analysis import analyze
from embedmask_mmdet.analysis.report.data import Detection, Instance, Labels, read_detections, read_labels
from embedmask_mmdet.analysis.report.data_page import write_data_page
from embedmask_mmdet.analysis.report.errors import KINDS, compare
from embedmask_mmdet.analysis.report.model_page import make_model_page
from embedmask_mmdet.errors import InputError
from tests.builders import CLASSES, ROOT, tiny_cfg, tiny_detector, write_tiny_coco
from tests.scripts import run_script

TOOL = ROOT / 'tools' / 'analysis_tools' / 'report.py'
CASES = ROOT.parent / 'shared' / 'cases'
HEIGHT, WIDTH = 60, 100
CAT, DOG = 3, 7
NEVER_CLOSED = {'meta', 'img', 'br'}


def encode(*boxes):
    """Encode the union of boxes ``(left, top, width, height)``."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = 1
    rle = mask_utils.encode(mask)
    return dict(size=rle['size'], counts=rle['counts'].decode())


def truth(*boxes, id=1, cat=CAT, image=1, crowd=False, bbox=None):
    rle = encode(*boxes)
    area, around = float(mask_utils.area(rle)), mask_utils.toBbox(rle).tolist()
    return Instance(id, id, image, cat, rle, tuple(bbox or around), area, crowd)


def found(*boxes, id=1, cat=CAT, image=1, score=0.9):
    rle = encode(*boxes)
    return Detection(id, image, cat, rle, tuple(mask_utils.toBbox(rle).tolist()), score)


def make_labels(instances, num_images=1):
    images = {i: dict(id=i, file_name=f'{i}.png', height=HEIGHT, width=WIDTH) for i in range(1, num_images + 1)}
    return Labels('labels.json', 'nowhere', images, {CAT: 'cat', DOG: 'dog'}, list(instances))


def number(items):
    """Give instances or detections the ids 1, 2, ..."""
    return [type(item)(**{**item.__dict__, 'id': i}) for i, item in enumerate(items, start=1)]


LEFT, RIGHT, AWAY = (10, 10, 20, 20), (30, 10, 20, 20), (70, 30, 20, 20)
BOTH = (10, 10, 40, 20)
EXAMPLES = {
    'right': ([truth(LEFT)], [found(LEFT)], []),
    'two right neighbors': ([truth(LEFT), truth(RIGHT)], [found(LEFT), found(RIGHT)], []),
    'missed': ([truth(LEFT)], [], ['missed']),
    'invented': ([truth(LEFT)], [found(LEFT), found(AWAY)], ['invented']),
    'merged': ([truth(LEFT), truth(RIGHT)], [found(BOTH)], ['merged']),
    'merged, although it fits one': ([truth(LEFT), truth((30, 10, 9, 20))], [found((10, 10, 29, 20))], ['merged']),
    'a tiny instance inside is missed': ([truth(LEFT), truth((30, 10, 1, 20))], [found((10, 10, 21, 20))], ['missed']),
    'merged beside a right one': (
        [truth(LEFT), truth(RIGHT)],
        [found(LEFT), found((9, 10, 42, 20), score=0.5)],
        ['merged'],
    ),
    'split': ([truth(BOTH)], [found(LEFT, score=0.8), found(RIGHT)], ['split']),
    'split, although a piece fits': ([truth(BOTH)], [found((10, 10, 25, 20)), found((35, 10, 15, 20))], ['split']),
    'split into classes': ([truth(BOTH)], [found(LEFT), found(RIGHT, cat=DOG)], ['split']),
    'a piece that is another instance': (
        [truth(BOTH), truth(RIGHT, cat=DOG)],
        [found(LEFT), found(RIGHT, score=0.8)],
        ['coarse outline', 'wrong class'],
    ),
    'wrong class': ([truth(LEFT)], [found(LEFT, cat=DOG)], ['wrong class']),
    'duplicate': ([truth(LEFT)], [found(LEFT), found(LEFT, score=0.8)], ['duplicate']),
    'duplicate of another class': ([truth(LEFT)], [found(LEFT), found(LEFT, cat=DOG)], ['duplicate']),
    'coarse, but found': ([truth(LEFT)], [found((10, 10, 20, 12))], ['coarse outline']),
    'coarse, not found': ([truth(LEFT)], [found((20, 10, 20, 20))], ['coarse outline']),
    'not near enough': ([truth(LEFT)], [found((29, 10, 20, 20))], ['invented', 'missed']),
    'other class, not near enough': ([truth(LEFT)], [found((20, 10, 20, 20), cat=DOG)], ['invented', 'missed']),
    'in a crowd': ([truth(LEFT), truth(AWAY, crowd=True)], [found(LEFT), found(AWAY)], []),
    'crowds are not missed': ([truth(AWAY, crowd=True)], [], []),
    'second label of one object': ([truth(LEFT), truth(LEFT)], [found(LEFT)], ['missed']),
    'low scores are not shown': ([truth(LEFT)], [found(LEFT), found(AWAY, score=0.1)], []),
    'another image': ([truth(LEFT)], [found(LEFT, image=2)], ['invented', 'missed']),
}


@pytest.mark.parametrize('instances, detections, kinds', EXAMPLES.values(), ids=EXAMPLES)
def test_mistakes_are_of_these_kinds(instances, detections, kinds):
    outcome = compare(number(instances), number(detections), {CAT: 0.3, DOG: 0.3})
    assert sorted(mistake.kind for mistake in outcome.mistakes) == sorted(kinds)
    explained = [instance.id for mistake in outcome.mistakes for instance in mistake.repair.ignored]
    assert len(explained) == len(set(explained))


def test_every_kind_has_an_example_and_an_explanation():
    assert {kind for *_, kinds in EXAMPLES.values() for kind in kinds} == set(KINDS)


def test_a_mistake_says_what_it_is_about():
    instances, detections = number([truth(LEFT), truth(RIGHT)]), [found(BOTH, score=0.4)]
    (merged,) = compare(instances, detections, {}).mistakes
    assert {instance.id for instance in merged.instances} == {1, 2} and merged.detections == tuple(detections)
    assert (merged.image_id, merged.score, merged.iou) == (1, 0.4, 0.5)
    (missed,) = compare(instances[:1], [], {}).mistakes
    assert (missed.score, missed.iou) == (None, 0)


# What mistakes cost


def scene_of_all_kinds():
    """Make an image for each example, and a right detection in an image of its own for each class."""
    instances, detections = [truth(LEFT), truth(AWAY, cat=DOG)], [found(LEFT), found(AWAY, cat=DOG, score=0.7)]
    for image, (own_instances, own_detections, _) in enumerate(EXAMPLES.values(), start=3):
        instances += [Instance(**{**item.__dict__, 'image_id': image}) for item in own_instances]
        detections += [Detection(**{**item.__dict__, 'image_id': image}) for item in own_detections]
    detections = [Detection(**{**d.__dict__, 'score': d.score - 0.001 * i}) for i, d in enumerate(detections)]
    return make_labels(number(instances), len(EXAMPLES) + 2), number(detections)


def test_repairing_gives_the_ap_computed_by_hand():
    # 4 instances: one found, one with the wrong class, one missed, one found coarsely (IoU 0.6: 3 of 10 thresholds).
    images = [dict(image=image) for image in (1, 2, 3, 4)]
    instances = number([truth(LEFT, **image) for image in images])
    detections = number(
        [
            found(LEFT, image=1, score=0.9),
            found(AWAY, image=1, score=0.8),
            found(LEFT, image=2, cat=DOG, score=0.7),
            found((10, 10, 20, 12), image=4, score=0.6),
        ]
    )
    labels = make_labels(instances, 4)
    assert labels.names[DOG] == 'dog'

    def ap(*ranks):
        """COCO's AP of 4 instances (or as many as are given last), with right detections at these ranks."""
        *ranks, total = ranks
        recalls = np.linspace(0, 1, 101)
        best = [
            max([(k + 1) / rank for k, rank in enumerate(ranks) if (k + 1) / total >= recall - 1e-9], default=0)
            for recall in recalls
        ]
        return np.mean(best)

    mistakes = compare(instances, detections, {}).mistakes
    assert {mistake.kind for mistake in mistakes} == {'wrong class', 'missed', 'invented', 'coarse outline'}
    before = evaluation.read_ap(evaluation.evaluate(labels, detections))
    assert before == pytest.approx(0.3 * ap(1, 3, 4) + 0.7 * ap(1, 4))
    repaired = evaluation.compute_repaired_ap(labels, detections, mistakes)
    assert repaired['invented'] == pytest.approx(0.3 * ap(1, 2, 4) + 0.7 * ap(1, 4))
    assert repaired['wrong class'] == pytest.approx(0.3 * ap(1, 3, 4, 4) + 0.7 * ap(1, 3, 4))
    assert repaired['missed'] == pytest.approx(0.3 * ap(1, 3, 3) + 0.7 * ap(1, 3))
    assert repaired['coarse outline'] == pytest.approx(ap(1, 3, 4))


@pytest.mark.parametrize('name', [name for name, (*_, kinds) in EXAMPLES.items() if kinds])
def test_repairing_all_mistakes_makes_ap_1(name):
    instances, detections, _ = EXAMPLES[name]
    instances, detections = number(instances), number(detections)
    mistakes = compare(instances, detections, {}).mistakes
    labels = make_labels(instances, 2)
    repaired = evaluation.apply_repairs(instances, detections, [mistake.repair for mistake in mistakes])
    ap = evaluation.read_ap(evaluation.run_evaluation(labels, *repaired))
    # Without an instance that counts, there is no AP.
    if ap is None:
        assert {mistake.kind for mistake in mistakes} <= {'missed', 'invented'}
    else:
        assert ap == pytest.approx(1)


def test_estimated_costs_are_those_of_a_repair_alone():
    labels, detections = scene_of_all_kinds()
    single = evaluation.evaluate(labels, detections)
    before = evaluation.read_ap(single)
    pairs = costs.sort_by_cost(compare(labels.instances, detections, {CAT: 0.3, DOG: 0.3}).mistakes, single)
    assert [cost for cost, _ in pairs] == sorted((cost for cost, _ in pairs), reverse=True) and pairs[0][0] > 0
    assert {mistake.kind for _, mistake in pairs} == set(KINDS)
    for cost, mistake in pairs:
        repaired = evaluation.apply_repairs(labels.instances, detections, [mistake.repair])
        after = evaluation.read_ap(evaluation.run_evaluation(labels, *repaired))
        assert cost == pytest.approx(max(after - before, 0), abs=0.004), mistake.kind


def test_ap_by_class_and_size_is_that_of_coco():
    big = (0, 0, 60, 50)
    instances = number([truth(LEFT), truth(big, image=2), truth(LEFT, cat=DOG, image=2)])
    detections = number([found(LEFT), found(LEFT, cat=DOG, image=2)])
    labels = make_labels(instances, 2)
    mask, box = (evaluation.evaluate(labels, detections, kind, evaluation.SIZES) for kind in ('segm', 'bbox'))
    half, one = 51 / 101, pytest.approx(1)
    assert statistics.tabulate_ap(labels, mask, box) == [
        ['all classes', 3, pytest.approx((half + 1) / 2), pytest.approx((half + 1) / 2), one, 0, None],
        ['cat', 2, pytest.approx(half), pytest.approx(half), one, 0, None],
        ['dog', 1, one, one, one, None, None],
    ]
    assert [row[1:] for row in statistics.tabulate_sizes(labels, mask, box)] == [
        [2, one, one],
        [1, 0, 0],
        [0, None, None],
    ]


def test_confusions_are_counted():
    labels, detections = scene_of_all_kinds()
    outcome = compare(labels.instances, detections, {CAT: 0.3, DOG: 0.3})
    counts = statistics.count_confusions(outcome)
    assert counts[CAT, DOG] == 1 and counts[DOG, CAT] == 1 and counts[DOG, DOG] == 1
    assert counts[CAT, CAT] == sum(instance.category_id == CAT for instance, *_ in outcome.matches)
    per_class = evaluation.count_instances(labels)
    for category_id in labels.names:
        assert sum(n for (t, _), n in counts.items() if t == category_id) == per_class[category_id]
    assert counts[None, DOG] == 3 and counts[CAT, None] == 9


# Labels that are probably wrong


def test_odd_labels_are_found():
    instances = [
        truth(LEFT),
        truth((10, 10, 20, 19), cat=DOG),  # the same object again
        truth((12, 12, 6, 6)),  # inside the first
        truth((70, 40, 3, 3)),
        truth(AWAY, image=2, bbox=(40, 30, 20, 20)),
        truth(AWAY, image=3, bbox=(80, 30, 30, 20)),
        truth(BOTH, image=3),
    ]
    odd = suspicions.suspect_labels(make_labels(number(instances), 4))
    by_kind = {}
    for suspicion in odd:
        ids = sorted(instance.id for instance in suspicion.instances)
        by_kind.setdefault(suspicion.kind, []).append((suspicion.image_id, ids, suspicion.note))
    assert by_kind == {
        'labeled twice': [(1, [1, 2], 'IoU 0.95')],
        'label inside another': [(1, [1, 3], '100% of it is inside')],
        'tiny': [(1, [4], '9 pixels')],
        'box does not fit': [(2, [5], 'off by up to 30 pixels'), (3, [6], 'off by up to 20 pixels')],
        'outside the image': [(3, [6], 'by 10 pixels')],
        'no label': [(4, [], '')],
    }
    assert set(by_kind) == set(suspicions.KINDS)


def grid_of_objects():
    """Make 20 images with two objects each, and a model that finds all of them, the first ones with higher scores."""
    instances, detections = [], []
    for image in range(1, 21):
        for place, cat in ((LEFT, CAT), (AWAY, DOG)):
            instances.append(truth(place, image=image, cat=cat))
            detections.append(found(place, image=image, cat=cat, score=0.95 - 0.01 * image))
    return number(instances), number(detections)


def suspect(instances, detections):
    """Return the first suspicion of each kind."""
    found = analyze(make_labels(instances, 20), detections).suspicions
    return {suspicion.kind: suspicion for suspicion in reversed(found)}


def test_right_labels_are_not_suspected():
    assert suspect(*grid_of_objects()) == {}


def test_mistakes_in_labels_are_shown_first():
    instances, detections = grid_of_objects()
    changed = dict(enumerate(instances))
    missing = changed.pop(0)
    wrong = changed[2] = Instance(**{**instances[2].__dict__, 'category_id': DOG})
    phantom = changed[100] = truth((40, 0, 12, 10), id=100, image=5)
    twice = changed[101] = Instance(**{**instances[6].__dict__, 'id': 101})
    # One label for two objects, and two labels for one.
    joined = changed[8] = truth(LEFT, RIGHT, id=9, image=5)
    detections.append(found(RIGHT, id=200, image=5, score=0.94))
    changed[10] = truth((10, 10, 10, 20), id=11, image=6)
    changed[102] = truth((20, 10, 10, 20), id=102, image=6)
    first = suspect(list(changed.values()), detections)
    assert [d.id for d in first['probably a missing label'].detections] == [missing.id]
    assert first['probably a wrong class'].instances == (wrong,)
    assert first['label of nothing?'].instances == (phantom,)
    assert {i.id for i in first['labeled twice'].instances} == {instances[6].id, twice.id}
    assert first['probably several objects in one label'].instances == (joined,)
    assert {i.id for i in first['probably one object in several labels'].instances} == {11, 102}
    assert set(first) == {*suspicions.MODEL_KINDS, 'labeled twice'}


def test_swapped_classes_are_suspected_both():
    instances, detections = grid_of_objects()
    for i, cat in ((4, DOG), (5, CAT)):
        instances[i] = Instance(**{**instances[i].__dict__, 'category_id': cat})
    analysis = analyze(make_labels(instances, 20), detections)
    assert [(s.kind, s.instances[0].id) for s in analysis.suspicions] == [('probably a wrong class', i) for i in (5, 6)]


def test_unsure_detections_suspect_no_label():
    instances, detections = grid_of_objects()
    detections.append(found((40, 0, 12, 10), id=200, image=5, score=0.8))
    assert suspect(instances, detections) == {}


def test_a_missing_label_is_shown_once_and_before_bad_masks():
    instances, detections = grid_of_objects()
    missing, bad_mask = (40, 0, 12, 10), (76, 38, 22, 20)  # the latter has IoU 0.26 with a label
    detections += [
        found(bad_mask, id=200, image=5, score=0.94),
        found(missing, id=201, image=6, score=0.9),
        found(missing, id=202, image=6, score=0.92, cat=DOG),
    ]
    found_by_model = analyze(make_labels(instances, 20), detections).suspicions
    assert [suspicion.detections[0].id for suspicion in found_by_model] == [202, 200]


# The page


class Checker(HTMLParser):
    """Collects text, addresses and the names of elements, and fails at elements that are not nested."""

    def __init__(self, page):
        super().__init__()
        self.text, self.names, self.sources, self.open = '', [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        attributes = dict(attributes)
        self.sources += [attributes[key] for key in ('src', 'href') if key in attributes]
        assert not any(key.startswith('on') for key in attributes)
        if name not in NEVER_CLOSED:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        self.open.pop()

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data


def check_page(page):
    """Check that a page is complete and needs nothing from elsewhere."""
    checker = Checker(page)
    assert page.startswith('<!DOCTYPE html>') and 'viewport' in page
    assert not {'script', 'link', 'iframe', 'object'} & set(checker.names)
    assert all(source.startswith(('#', 'data:image/jpeg;base64,')) for source in checker.sources)
    assert not re.search(r'url\(|@import', page)
    # Each section begins with a sentence that says how to read it.
    assert page.count('<section') == len(
        re.findall(r'<section id="[^"]+"><h2>[^<]+</h2>\n?<p class="lead">[^<]+', page)
    )
    return checker


def test_page_shows_what_was_found():
    labels, detections = scene_of_all_kinds()
    analysis = analyze(labels, detections)
    page = make_model_page('A title', analysis, {'model': 'some model'}, num_crops=2)
    text = check_page(page).text
    for kind in KINDS:
        assert kind.capitalize() in text
    missed = sum(mistake.kind == 'missed' for _, mistake in analysis.costs)
    assert missed > 2 and f'Missed ({missed}, the first 2 of them)' in text and 'some model' in text
    assert page.count('<img') <= 2 * (len(KINDS) + len(suspicions.KINDS) + len(suspicions.MODEL_KINDS))
    ap = evaluation.read_ap(analysis.mask)
    assert f'{ap:.3f}' in text and re.search(r'costs 0\.\d{4} AP', text)
    for threshold in analysis.thresholds.values():
        assert f'>{threshold.threshold:.2f}</text>' in page


def test_names_are_escaped():
    evil = '<script>alert("x")</script>&\'\udc80'
    instances, detections = number([truth(LEFT), truth(RIGHT)]), number([found(AWAY), found(LEFT)])
    labels = make_labels(instances)
    labels.names[CAT], labels.images[1]['file_name'] = evil, evil
    page = make_model_page(evil, analyze(labels, detections), {evil: evil})
    assert 'script' not in check_page(page).names
    assert evil in Checker(page).text


@pytest.mark.parametrize('instances', [[], [truth(LEFT)]], ids=['no instances', 'one instance'])
@pytest.mark.parametrize('detections', [[], [found(AWAY)]], ids=['no detections', 'one detection'])
def test_page_of_almost_nothing(instances, detections):
    analysis = analyze(make_labels(instances), detections)
    text = check_page(make_model_page('title', analysis, {})).text
    assert ('no detections' in text) or detections
    kinds = ['invented'] * len(detections) + ['missed'] * len(instances)
    assert sorted(mistake.kind for _, mistake in analysis.costs) == kinds
    assert evaluation.read_ap(analysis.mask) == (0 if instances else None)


def test_many_classes_become_a_list():
    instances = number([truth(LEFT, cat=cat, image=cat) for cat in range(1, 41)])
    detections = number([found(LEFT, cat=cat % 40 + 1, image=cat) for cat in range(1, 41)])
    labels = make_labels(instances, 40)
    labels.names = {cat: f'class {cat}' for cat in range(1, 41)}
    page = make_model_page('title', analyze(labels, detections), {})
    assert page.count('<svg') == 1
    assert '<td class="name">class 40</td><td class="name">class 1</td><td class="number">1</td>' in page


def test_missing_images_are_gray():
    analysis = analyze(make_labels([truth(LEFT)]), [])
    assert '<img src="data:image/jpeg' in make_model_page('title', analysis, {})


def test_histogram_counts_all_values():
    svg = charts.draw_histogram('title', 'size', [1, 1, 2, 50, 99.5])
    counted = [int(count) for count in re.findall(r'<title>[\d.]+ to [\d.]+: (\d+)</title>', svg)]
    assert sum(counted) == 5 and counted[0] == 3
    assert 'nothing to count' in charts.draw_histogram('title', 'size', [])


# Files


def test_what_cannot_be_used_is_listed(tmp_path):
    good = dict(image_id=1, category_id=1, segmentation=[[1, 1, 9, 1, 9, 9]])
    content = dict(
        images=[dict(id=1, file_name='a.png', height=20, width=30), dict(id=2, file_name='b.png')],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
        annotations=[
            dict(good, id=1),
            dict(good, id=2, image_id=5),
            dict(good, id=3, image_id=2),
            dict(good, id=4, segmentation=[]),
            dict(good, id=5, segmentation=[[1, 1, 2, 2]]),
            dict(good, id=6, segmentation=[[1, 1, float('nan'), 1, 9, 9]]),
            dict(good, id=7, segmentation=dict(size=[30, 20], counts='1')),
            dict(good, id=8, segmentation=dict(size=[20, 30], counts=[5, 5])),
            dict(good, id=9, category_id='1'),
            dict(good, id=10, category_id=2),
            dict(good, id=12, category_id=[1]),
            dict(good, id=13, image_id=None),
            'a label',
            dict(good, id=11, segmentation=[[40, 40, 50, 40, 50, 50]]),
        ],
    )
    (tmp_path / 'labels.json').write_text(json.dumps(content))
    labels = read_labels(tmp_path / 'labels.json', '', ['cat'])
    assert [instance.label_id for instance in labels.instances] == [1]
    assert {each.label_id: each.reason for each in labels.unreadable} == {
        2: 'the file has no image 5',
        3: 'the entry of its image has no height or width',
        4: 'it has no segmentation',
        5: 'it has a polygon of fewer than 3 points',
        6: 'it has coordinates that are not finite',
        7: 'its mask is 30 high and 20 wide, the image 20 and 30',
        8: 'its run lengths do not add up to the size of the image',
        9: "the file has no category '1'",
        11: 'its mask is empty',
        12: 'the file has no category [1]',
        13: 'the file has no image None',
        None: "the entry is 'a label'",
    }


@pytest.mark.parametrize(
    'results, message',
    [
        ([dict(image_id=1)], 'are not a list of masks'),
        (['a'], 'are not a list of masks'),
        ([dict(image_id=9, category_id=CAT, score=1, segmentation=encode(LEFT))], 'have image 9, which labels.json'),
    ],
)
def test_wrong_results_are_refused(results, message):
    with pytest.raises(InputError, match=message):
        read_detections(results, make_labels([]))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, a checkpoint with random weights, data, and results: all labels, each with an invented mask."""
    folder = tmp_path_factory.mktemp('report')
    data = write_tiny_coco(folder / 'data')
    tiny_cfg(data, folder / 'unused').dump(folder / 'tiny.py')
    torch.save(
        dict(state_dict=tiny_detector().state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), folder / 'a.pth'
    )
    annotations = json.loads((data / 'annotations.json').read_text())['annotations']
    keys = ('image_id', 'category_id', 'segmentation')
    results = [{**{key: each[key] for key in keys}, 'score': 0.9} for each in annotations]
    (folder / 'results.json').write_text(json.dumps(results))
    (folder / 'list.json').write_text('[]')
    (folder / 'mine.html').write_text('<html>mine</html>')
    return folder


def test_tool_reports_on_a_checkpoint(folder):
    options = ['--cfg-options', 'model.test_cfg.score_thr=0.0']
    result = run_script(TOOL, ['tiny.py', 'a.pth', '--crops', '3', *options], folder)
    assert result.code == 0, result.stderr
    assert result.stdout.endswith('written to report.html\n')
    text = check_page((folder / 'report.html').read_text()).text
    assert 'checkpoint: a.pth' in text and 'EmbedMask' in text and 'data/annotations.json' in text
    assert re.search(r'12\s*instances', text)
    assert not (folder / 'unused').exists()


def test_tool_reports_on_results(folder):
    result = run_script(TOOL, ['tiny.py', '--results', 'results.json', '--out', 'results.html'], folder)
    assert result.code == 0, result.stderr
    text = check_page((folder / 'results.html').read_text()).text
    assert re.search(r'1\.000\s*mask AP', text) and 'boxes: around the masks' in text


def test_tool_shows_data_without_a_checkpoint(folder):
    result = run_script(TOOL, ['tiny.py', '--out', 'data.html'], folder)
    assert result.code == 0, result.stderr
    text = check_page((folder / 'data.html').read_text()).text
    assert re.search(r'4\s*images', text) and re.search(r'12\s*instances', text)
    assert '128x96' in text and 'Suspicious' not in text
    # Training and validation data are the same file here, which is shown once.
    assert 'Training data: suspicious labels' in text and 'Validation data' not in text


@pytest.mark.parametrize('ann_file', ['annotations.json', 'not_there.json'])
def test_findings_of_checks_are_on_the_page_of_the_data(folder, ann_file):
    findings = [SimpleNamespace(severity='error', message='label 3 has <no> mask')]
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.train_dataloader.dataset.ann_file = ann_file
    write_data_page(cfg, folder / 'findings.html', findings)
    page = (folder / 'findings.html').read_text()
    assert check_page(page).text.count('label 3 has <no> mask') == 1
    assert '<td class="error">error</td>' in page


@pytest.mark.skipif(not CASES.is_dir(), reason='needs ../shared/cases')
def test_data_page_copes_with_broken_files(folder):
    cases = sorted(CASES.glob('*.json'))
    for case in cases:
        cfg = Config.fromfile(folder / 'tiny.py')
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.ann_file = str(case)
            loader.dataset.metainfo.classes = ('cell', 'nucleus', 'cat', 'dog')
        write_data_page(cfg, folder / 'case.html')
        check_page((folder / 'case.html').read_text())
    assert cases


@pytest.mark.parametrize(
    'args, message',
    [
        (['other.py', 'a.pth'], 'the config other.py does not exist'),
        (['tiny.py', 'b.pth'], 'the checkpoint b.pth does not exist'),
        (['tiny.py', '--results', 'none.json'], 'none.json cannot be read: No such file'),
        (['tiny.py', '--results', 'a.pth'], 'a.pth is not a JSON file'),
        (['tiny.py', '--out', 'nowhere/a.html'], 'nowhere/a.html cannot be written: there is no folder nowhere'),
        (['tiny.py', '--out', 'data'], 'data is a folder'),
        (['tiny.py', '--out', 'mine.html'], 'mine.html exists and is no report, so it is not written over'),
        (['tiny.py', '--cfg-options', 'train_dataloader.dataset.ann_file=no.json'], 'no.json cannot be read'),
        (['tiny.py', '--cfg-options', 'train_dataloader.dataset.ann_file=../list.json'], 'has no list "images"'),
        (
            ['tiny.py', 'a.pth', '--cfg-options', "test_dataloader.dataset.metainfo.classes=('bird',)"],
            'has none of the classes of test_dataloader',
        ),
    ],
)
def test_errors_are_one_line(folder, args, message):
    result = run_script(TOOL, args, folder)
    assert result.code == 1
    (error,) = re.findall('^report.py: error: .*', result.stderr, re.MULTILINE)
    assert message in error and 'Traceback' not in result.stderr
    assert (folder / 'mine.html').read_text() == '<html>mine</html>'


def test_pictures_show_the_image_and_the_outlines(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((HEIGHT, WIDTH, 3), (200, 60, 60), np.uint8))
    near = [truth((10, 32, 20, 6))]
    uri = crops.draw_comparison(str(tmp_path / 'a.png'), [truth(LEFT)], [found(RIGHT)], near, [])
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(',')[1]), np.uint8), cv2.IMREAD_COLOR)
    height, width = picture.shape[:2]
    assert width == 2 * height + crops.GAP
    left, right = picture[:, :height].astype(int), picture[:, -height:].astype(int)

    def count(panel, color):
        return (np.abs(panel - color).max(2) < 60).sum()

    assert count(left, crops.TRUTH_COLOR) > 50 and count(left, crops.PREDICTION_COLOR) == 0
    assert count(right, crops.PREDICTION_COLOR) > 50 and count(right, crops.TRUTH_COLOR) == 0
    assert count(left, crops.OTHER_COLOR) > 20 and count(right, crops.OTHER_COLOR) == 0
    assert count(left, (200, 60, 60)) > 0.7 * height**2
