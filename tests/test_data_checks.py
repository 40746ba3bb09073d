"""Data that people have, through ``tools/train.py``: one line says what is wrong, or it trains."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as mask_utils

from embedmask_mmdet.engine.data_checks import find_problems
from tests.builders import ROOT, tiny_cfg
from tests.scripts import run_script

TRAIN = ROOT / 'tools/train.py'
CHECK = ROOT / 'tools/misc/check_data.py'
CASES = ROOT.parent / 'shared' / 'cases'
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
BAR = [40, 5, 48, 5, 48, 40, 40, 40]


def make_content():
    """The file ``good.json`` of the cases: an image of 64 x 48 pixels with a square and a bar."""
    about = dict(image_id=1, iscrowd=0)
    return dict(
        images=[dict(id=1, file_name='1.png', height=48, width=64)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=[
            dict(about, id=1, category_id=1, bbox=[10, 10, 20, 20], area=400, segmentation=[SQUARE]),
            dict(about, id=2, category_id=2, bbox=[40, 5, 8, 35], area=280, segmentation=[BAR]),
        ],
    )


def write_project(folder, name='tiny.py', **images):
    """Write an image, a good annotation file, and a config that trains on it and validates with it."""
    (folder / 'images').mkdir()
    image = np.full((48, 64, 3), 40, np.uint8)
    image[10:30, 10:30], image[5:40, 40:48] = 200, 120
    cv2.imwrite(str(folder / 'images/1.png'), image)
    (folder / 'annotations.json').write_text(json.dumps(make_content()))
    cfg = tiny_cfg(folder, folder / 'unused')
    cfg.pop('work_dir')
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.metainfo = dict(classes=('a', 'b'))
    cfg.train_dataloader.dataset.filter_cfg.min_size = 8
    shutil.copy(folder / 'annotations.json', folder / 'val.json')
    cfg.val_dataloader.dataset.ann_file = 'val.json'
    cfg.val_evaluator.ann_file = str(folder / 'val.json')
    cfg.test_cfg = dict(type='TestLoop')
    cfg.dump(folder / name)
    return folder


@pytest.fixture(scope='module')
def good_project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp('project'))


@pytest.fixture
def project(good_project, tmp_path):
    """A copy of the project that a test may change; paths in its config name the copy."""
    shutil.copytree(good_project, tmp_path, dirs_exist_ok=True)
    config = tmp_path / 'tiny.py'
    config.write_text(config.read_text().replace(str(good_project), str(tmp_path)))
    return tmp_path


def train(project, *options):
    options = ('--cfg-options', *options) if options else ()
    return run_script(TRAIN, ['tiny.py', *options], project)


def last_line(result):
    """The only line that a failed tool says, without warnings of libraries."""
    assert result.code == 1
    assert 'Traceback' not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith(('train.py: error', 'test.py: error'))]
    assert len(lines) == 1 and result.stderr.rstrip().endswith(lines[0])
    return lines[0]


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# The cases that people have, as training and as validation file


REFUSED = dict(
    category_name_twice=['"a" is the name of ids 0, 1', 'Rename or remove'],
    crowd_without_mask=['without "segmentation" in the images 1.png', 'add them, or remove'],
    empty_polygon=['without "segmentation" in the images 1.png', 'add them, or remove'],
    flat_polygon=['"segmentation" is one list of numbers', 'id 1', 'another pair of brackets'],
    ids_twice=['several "annotations" have the same id: 1', 'Number them from 1'],
    nan_coordinate=['coordinates that are NaN', 'id 1', 'Redraw or remove'],
    no_area=['"annotations" without "area": id 1, id 2', 'fill_in.py'],
    no_file_name=['"images" without "file_name": id 1', "Write the file's name"],
    no_height=['"images" without "height": id 1 (1.png)', 'in pixels'],
    string_category_ids=['"id" in "categories" is a string: id 1, id 2'],
)
TAKEN = dict(
    good='',
    category_order='',
    iscrowd_null='',
    short_polygon='fewer than three points, or with an odd number of coordinates, are left out',
)
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason='no ../shared/cases')


@needs_cases
def test_all_cases_are_tested():
    assert {path.stem for path in CASES.glob('*.json')} == {*REFUSED, *TAKEN}


@needs_cases
@pytest.mark.parametrize('file', ['annotations.json', 'val.json'])
@pytest.mark.parametrize('case', REFUSED)
def test_cases_that_are_refused_in_one_line(project, case, file):
    shutil.copyfile(CASES / f'{case}.json', project / file)
    before = (project / file).read_bytes()
    message = last_line(train(project))
    assert all(part in message for part in [file, *REFUSED[case]])
    assert (project / file).read_bytes() == before
    assert not list(project.glob('work_dirs/*/*.pth'))


@needs_cases
@pytest.mark.parametrize('case', TAKEN)
def test_cases_that_are_taken(project, case):
    for file in ('annotations.json', 'val.json'):
        shutil.copyfile(CASES / f'{case}.json', project / file)
    result = train(project)
    assert result.code == 0, result.stderr[-3000:]
    (log,) = project.glob('work_dirs/tiny/*/*.log')
    assert TAKEN[case] in log.read_text()
    assert (project / 'work_dirs/tiny/epoch_1.pth').is_file()


# More files of each kind, without a model


def find(project, **kwargs):
    """The findings for a project's config."""
    return find_problems(Config.fromfile(project / 'tiny.py'), **kwargs)


def errors(project, **kwargs):
    return [finding.message for finding in find(project, **kwargs) if finding.severity == 'error']


def first(content):
    return content['annotations'][0]


def edit_first(**values):
    return lambda content: first(content).update(values)


def edit_all(**values):
    return lambda content: [annotation.update(values) for annotation in content['annotations']]


def edit_rle(**values):
    rle = dict(size=[48, 64], counts=[0, 48 * 64])
    return edit_first(segmentation={key: value for key, value in dict(rle, **values).items() if value is not None})


def normalize(content):
    for annotation in content['annotations']:
        annotation['bbox'] = [value / 64 for value in annotation['bbox']]


def number_as_strings(content):
    for kind in ('images', 'annotations'):
        for entry in content[kind]:
            entry['id'] = str(entry['id'])


EDITS = {
    'iscrowd is a word': (edit_first(iscrowd='no'), r'"iscrowd" in "annotations" is \'no\': id 1\. Write 0'),
    'iscrowd is a list': (edit_first(iscrowd=[]), r'"iscrowd" .* is \[\]: id 1'),
    'area is a string': (edit_first(area='400'), r'"area" in "annotations" is a string: id 1\. Write the area'),
    'area is null': (edit_first(area=None), r'"area" in "annotations" is null: id 1'),
    'area is not finite': (edit_first(area=float('inf')), r'"area" in "annotations" is not finite: id 1'),
    'no bbox': (lambda content: first(content).pop('bbox'), r'without "bbox": id 1\. Write \[left'),
    'bbox of three numbers': (edit_first(bbox=[1, 2, 3]), r'"bbox" in "annotations" is not four finite .* id 1'),
    'bbox of strings': (edit_first(bbox=['1', '2', '3', '4']), r'"bbox" .* is not four finite numbers: id 1'),
    'bbox with NaN': (edit_first(bbox=[1, 2, float('nan'), 4]), r'"bbox" .* is not four finite numbers: id 1'),
    'no image_id': (lambda content: first(content).pop('image_id'), r'without "image_id": id 1'),
    'no id': (lambda content: first(content).pop('id'), r'without "id": number 1 in the list'),
    'ids are strings': (number_as_strings, r'"id" in "annotations" is a string: id 1, id 2\. Number'),
    'all image ids unknown': (edit_all(image_id='1'), r'2 of 2 .* "image_id" that "images" does not list.*a string'),
    'all categories unknown': (edit_all(category_id=9), r'2 of 2 .* "category_id" .* for example 9: id 1, id 2'),
    'no images': (lambda content: content.update(images=[]), r'"images" is empty'),
    'no categories': (lambda content: content.update(categories=[]), r'"categories" is empty'),
    'no list of annotations': (lambda content: content.update(annotations={'1': 2}), r'"annotations" is not a list'),
    'categories are missing': (lambda content: content.pop('categories'), r'has no "categories"\. Export'),
    'image ids twice': (lambda content: content['images'].append(content['images'][0]), r'several "images" have the'),
    'height is a string': (lambda content: content['images'][0].update(height='48'), r'"height" .* a string: id 1 \(1'),
    'height is 0': (lambda content: content['images'][0].update(height=0), r'"height" or "width" .* below 1: id 1'),
    'points in pairs': (edit_first(segmentation=[[[1, 2], [3, 4], [5, 6]]]), r'has a list for each point.* id 1'),
    'coordinates are strings': (edit_first(segmentation=[list('123456')]), r'coordinates that are not numbers.* id 1'),
    'mask is a string': (edit_first(segmentation='1.png'), r'is neither polygons nor a run length.* id 1'),
    'huge coordinate': (edit_first(segmentation=[[1e9, *SQUARE[1:]]]), r'NaN, infinite or above 1000000.* id 1'),
    'RLE without counts': (edit_rle(counts=None), r'has no "counts": annotations id 1'),
    'RLE without size': (edit_rle(size=None), r'has no "size": \[height, width\]: annotations id 1'),
    'RLE is too short': (edit_rle(counts=[5, 5]), r'"counts" whose sum is not height x width: annotations id 1'),
    'RLE is negative': (edit_rle(counts=[-1, 48 * 64 + 1]), r'"counts" whose sum is not height x width'),
    'RLE is swapped': (
        edit_rle(size=[64, 48]),
        r'example \[64, 48\] instead of \[48, 64\].* id 1\. Height and width are',
    ),
    'RLE is cut off': (edit_rle(counts='n'), r'"counts" of run lengths cannot be decoded: annotations id 1'),
    'coordinates between 0 and 1': (normalize, r'all values of "bbox" are between 0 and 1.*Write pixels'),
    'area is 0 throughout': (edit_all(area=0), r'2 of 2 annotations have an "area" of 0 or less.* id 1, id 2'),
    'boxes of no width': (edit_all(bbox=[5, 5, 0, 9]), r'2 of 2 annotations .* narrower or lower than 1 pixel'),
    'boxes of negative width': (edit_all(bbox=[5, 5, -3, 9]), r'2 of 2 annotations .* narrower or lower than 1'),
    'boxes outside': (edit_all(bbox=[70, 5, 9, 9]), r'2 of 2 annotations have a "bbox" outside of the image'),
    'polygons on a line': (edit_all(segmentation=[[9, 9, 19, 9, 29, 9]]), r'2 of 2 .* polygons without area: id 1'),
    'no list of images': (lambda content: content.update(images=None), r'"images" is not a list of objects'),
    'only crowd regions': (edit_all(iscrowd=1), r'annotations\.json has 1 images, but no instance to learn from'),
    'paths of Windows': (
        lambda content: content['images'][0].update(file_name='c:\\1.png'),
        r'path of Windows: c:\\1\.',
    ),
}


@pytest.mark.parametrize(('edit', 'message'), EDITS.values(), ids=EDITS)
def test_wrong_files_are_named_with_what_to_do(project, edit, message):
    change(project / 'annotations.json', edit)
    found = errors(project)
    assert len(found) == 1 and re.search(message, found[0]), found
    assert str(project / 'annotations.json') in found[0] and '\n' not in found[0]


NOT_COCO = {
    'truncated': (json.dumps(make_content())[:300], 'is not complete JSON: line 1, column'),
    'empty': ('', 'is empty'),
    'a list': ('[{"a": 1}]', 'is a list at its top'),
    'detections': ('[{"image_id": 1, "score": 0.5}]', 'is a list of detections'),
    'a number': ('7', 'contains only 7'),
    'labelme': ('{"version": "5", "shapes": [], "imagePath": "1.png"}', 'is a labelme file of one image'),
    'VIA': ('{"_via_img_metadata": {}}', 'is a project of the VGG Image Annotator'),
    'Latin-1': ('{"images": "ä"}'.encode('latin-1'), 'is not encoded in UTF-8'),
}


@pytest.mark.parametrize(('content', 'message'), NOT_COCO.values(), ids=NOT_COCO)
def test_other_files_than_coco(project, content, message):
    path = project / 'annotations.json'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (found,) = errors(project)
    assert f'{path} {message}' in found


def test_folder_or_no_file_in_place_of_annotations(project):
    (project / 'annotations.json').unlink()
    assert 'annotations.json does not exist (working folder' in errors(project)[0]
    (project / 'annotations.json').mkdir()
    assert 'annotations.json is a folder' in errors(project)[0]


GOOD_EDITS = {
    'iscrowd is empty': edit_all(iscrowd=''),
    'iscrowd is missing': lambda content: [a.pop('iscrowd') for a in content['annotations']],
    'ids are whole floats': lambda content: content['images'][0].update(id=1.0),
    'one bad box': lambda content: content['annotations'].append(dict(first(content), id=3, bbox=[5, 5, 0, 0])),
    'unused category without masks': lambda content: (
        (
            content['categories'].append(dict(id=3, name='c')),
            content['annotations'].append(dict(first(content), id=3, category_id=3, segmentation=[])),
        )
    ),
    'unknown image': lambda content: content['annotations'].append(dict(first(content), id=3, image_id=9)),
}


@pytest.mark.parametrize('edit', GOOD_EDITS.values(), ids=GOOD_EDITS)
def test_unusual_files_have_no_errors(project, edit):
    for file in ('annotations.json', 'val.json'):
        change(project / file, edit)
    assert errors(project) == []


def test_files_with_a_byte_order_mark_are_read(project):
    path = project / 'annotations.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert find(project) == []


WARNED = {
    'some unknown': (GOOD_EDITS['unknown image'], r'1 of 3 annotations .*"image_id".* for example 9: id 3', (3,)),
    'one bad box': (GOOD_EDITS['one bad box'], r'1 of 3 .* narrower .* not learned: id 3', (3,)),
    'beyond the image': (edit_first(segmentation=[[2 * v for v in BAR]]), r'1 of 2 .* beyond their image: id 1', (1,)),
    'corners as bbox': (edit_first(bbox=[10, 10, 30, 30]), r'"bbox" that is not around their polygons: id 1', (1,)),
    'short piece': (edit_first(segmentation=[SQUARE, [1, 2]]), r'fewer than three points.* left out .* id 1\.', (1,)),
    'no instance of a class': (edit_all(category_id=1), r'has no instance of b to learn from', ()),
    'file listed twice': (
        lambda content: content['images'].append(dict(content['images'][0], id=2)),
        r'lists the same file several times: 1\.png',
        (),
    ),
}


@pytest.mark.parametrize(('edit', 'message', 'annotations'), WARNED.values(), ids=WARNED)
def test_suspicious_annotations_are_warned_of(project, edit, message, annotations):
    change(project / 'annotations.json', edit)
    found = [finding for finding in find(project) if re.search(message, finding.message)]
    assert [finding.severity for finding in found] == ['warning']
    assert found[0].annotations == annotations
    assert found[0].ann_file == str(project / 'annotations.json')


# Classes


def coco_metrics(project, classes):
    """AP of perfect detections, as MMDetection computes it for a dataset with these classes."""
    path = str(project / 'val.json')
    dataset = CocoDataset(
        ann_file=path, metainfo=dict(classes=classes), data_prefix=dict(img=''), pipeline=[], test_mode=True
    )
    metric = CocoMetric(path, metric=['bbox', 'segm'])
    metric.dataset_meta = dataset.metainfo
    instances = dataset[0]['instances']
    masks = BitmapMasks(
        [mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(each['mask'], 48, 64))) for each in instances],
        48,
        64,
    )
    predicted = dict(
        bboxes=torch.tensor([each['bbox'] for each in instances], dtype=torch.float),
        labels=torch.tensor([each['bbox_label'] for each in instances]),
        scores=torch.ones(len(instances)),
        masks=torch.from_numpy(masks.masks > 0),
    )
    metric.process({}, [dict(pred_instances=predicted, img_id=1, ori_shape=(48, 64))])
    names = [classes[each['bbox_label']] for each in instances]
    return names, metric.evaluate(1)


@pytest.mark.parametrize('classes', [('a', 'b'), ('b', 'a')])
@pytest.mark.parametrize('turned', [False, True])
def test_classes_are_matched_by_name(project, classes, turned):
    if turned:
        change(project / 'val.json', lambda content: content['categories'].reverse())
    names, metrics = coco_metrics(project, classes)
    assert names == ['a', 'b']
    assert metrics['coco/segm_mAP'] == metrics['coco/bbox_mAP'] == 1


def test_annotation_0_is_found_too(project):
    change(project / 'val.json', edit_first(id=0))
    assert coco_metrics(project, ('a', 'b'))[1]['coco/segm_mAP'] == 1


def test_short_pieces_do_not_count_in_the_metric(project):
    change(project / 'val.json', edit_first(segmentation=[[0, 0, 9, 9], SQUARE]))
    assert coco_metrics(project, ('a', 'b'))[1]['coco/segm_mAP'] == 1


@pytest.mark.parametrize(
    ('metainfo', 'message'),
    [
        (dict(classes=('a', 'b', 'c')), '"a" is the name of ids 1, 3'),
        (dict(classes=('a', 'a')), 'has a name twice'),
        (
            dict(classes=('a', 'b'), palette=[(0, 0, 0)]),
            'has 1 colors for 2 classes. Add colors, or write metainfo=dict',
        ),
    ],
)
def test_metainfo_that_does_not_fit(project, metainfo, message):
    if 'c' in metainfo['classes']:
        change(project / 'annotations.json', lambda content: content['categories'].append(dict(id=3, name='a')))
    cfg = Config.fromfile(project / 'tiny.py')
    cfg.train_dataloader.dataset.metainfo = metainfo
    assert message in ' '.join(finding.message for finding in find_problems(cfg))


def test_categories_of_a_file_without_the_classes_are_named(project):
    options = {'train_dataloader.dataset.metainfo.classes': ('A', 'b')}
    found = list_errors_of(project, options)
    assert 'annotations.json has no category A, as metainfo.classes says. Its categories are a, b.' in found[0]
    assert 'has only 1 of the 2 classes' in found[1]


def test_validation_without_annotations(project):
    change(project / 'val.json', lambda content: content.pop('annotations'))
    assert 'annotation file of val_evaluator has no annotations, so nothing can be evaluated' in errors(project)[0]


# Images


def save_turned(project, orientation):
    """Save the image as a JPEG whose EXIF says that it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (64, 48)).save(project / 'images/1.jpg', exif=exif)
    for file in ('annotations.json', 'val.json'):
        change(project / file, lambda content: content['images'][0].update(file_name='1.jpg'))


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((96, 128), '1.png is 128 x 96 pixels (width x height) instead of 64 x 48: 1.png. Use the images that were'),
        (
            (64, 48),
            '1.png is 48 x 64 pixels (width x height) instead of 64 x 48: 1.png. "height" and "width" are swapped',
        ),
    ],
)
def test_images_of_another_size(project, shape, message):
    cv2.imwrite(str(project / 'images/1.png'), np.zeros((*shape, 3), np.uint8))
    found = errors(project)
    assert len(found) == 2 and all(message in each for each in found)


def test_images_that_exif_turns(project):
    save_turned(project, 3)
    assert errors(project) == []
    save_turned(project, 6)
    assert "color_type='color_ignore_orientation'" in errors(project)[0]
    cfg = Config.fromfile(project / 'tiny.py')
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.pipeline[0].color_type = 'color_ignore_orientation'
    assert find_problems(cfg) == []


def test_images_of_16_bits(project):
    image = np.full((48, 64), 4095, np.uint16)
    cv2.imwrite(str(project / 'images/1.png'), image)
    assert '16 bits but values up to 4095, of which loading keeps only 0 to 15: 1.png. Convert' in errors(project)[0]
    cv2.imwrite(str(project / 'images/1.png'), image * 16)
    assert errors(project) == []


@pytest.mark.parametrize(('content', 'message'), [(b'', 'image files are empty'), (b'GIF', 'not readable images')])
def test_files_that_are_no_images(project, content, message):
    (project / 'images/1.png').write_bytes(content)
    found = errors(project)
    assert '1 of 1 images looked at: ' in found[0] and f'{message}: 1.png' in found[0]


def test_a_sample_of_images_or_all(project):
    change(
        project / 'annotations.json',
        lambda content: content.update(
            images=[dict(content['images'][0], id=i + 1, file_name=f'{i}.png') for i in range(9)]
        ),
    )
    for i in range(9):
        cv2.imwrite(str(project / f'images/{i}.png'), np.zeros((8, 9 if i else 8), np.uint8))
    cfg = Config.fromfile(project / 'tiny.py')
    cfg.train_dataloader.dataset.filter_cfg = None
    sampled, every = [
        [finding for finding in find_problems(cfg, number) if 'another size' in finding.message] for number in (3, None)
    ]
    assert len(sampled[0].images) == 3 and '3 of 9 images looked at' in sampled[0].message
    assert '--all-images` looks at all' in sampled[0].message
    assert sorted(every[0].images) == [f'{i}.png' for i in range(9)]


# Augmentations


def list_errors_of(project, options):
    cfg = Config.fromfile(project / 'tiny.py')
    cfg.merge_from_dict(options)
    return [finding.message for finding in find_problems(cfg)]


def test_batch_augmentation_that_does_not_move_masks(project):
    augment = dict(type='BatchSyncRandomResize', random_size_range=(64, 128))
    (found,) = list_errors_of(project, {'model.data_preprocessor.batch_augments': [augment]})
    assert found.startswith('BatchSyncRandomResize in model.data_preprocessor.batch_augments moves images and boxes')
    assert 'Use RandomChoiceResize in the pipeline of train_dataloader instead.' in found
    pad = dict(type='BatchFixedSizePad', size=(64, 128), pad_mask=True)
    assert list_errors_of(project, {'model.data_preprocessor.batch_augments': [pad]}) == []


@pytest.mark.parametrize(
    'step',
    [
        dict(type='RandomShift'),
        dict(type='RandomApply', transforms=[dict(type='RandomShift')]),
        dict(type='RandomChoice', transforms=[[dict(type='RandomShift')], [dict(type='RandomFlip', prob=0.5)]]),
    ],
    ids=lambda step: step['type'],
)
def test_transform_that_does_not_move_masks(project, step):
    cfg = Config.fromfile(project / 'tiny.py')
    cfg.train_dataloader.dataset.pipeline.insert(2, step)
    (found,) = find_problems(cfg)
    assert 'RandomShift in a pipeline moves images and boxes, but not masks' in found.message
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    assert find_problems(cfg) == [found]


def test_training_pipeline_without_masks(project):
    cfg = Config.fromfile(project / 'tiny.py')
    for part in ('train', 'val'):
        cfg[f'{part}_dataloader'].dataset.pipeline[1].with_mask = False
    (found,) = find_problems(cfg)
    assert 'Set with_mask=True in LoadAnnotations of train_dataloader.dataset.pipeline' in found.message


# As a user meets it


def test_training_ends_with_the_first_error_and_counts_the_others(project):
    cv2.imwrite(str(project / 'images/1.png'), np.zeros((96, 128, 3), np.uint8))
    change(project / 'annotations.json', edit_first(segmentation=[]))
    message = last_line(train(project))
    assert '1.png is 128 x 96 pixels' in message
    assert '(2 more found; `python tools/misc/check_data.py CONFIG` lists all of them.)' in message


def test_training_refuses_batch_augmentations(project):
    config = project / 'tiny.py'
    augment = dict(type='BatchSyncRandomResize', random_size_range=(64, 96))
    config.write_text(f'{config.read_text()}\nmodel["data_preprocessor"]["batch_augments"] = [{augment}]')
    assert 'BatchSyncRandomResize in model.data_preprocessor.batch_augments' in last_line(train(project))


def test_image_that_breaks_during_training_is_explained(project, monkeypatch):
    monkeypatch.setattr('embedmask_mmdet.engine.data_checks.datasets.NUM_IMAGES', 0)
    monkeypatch.setattr('embedmask_mmdet.engine.data_checks.images.look_at', lambda images, num_images: [])
    (project / 'images/1.png').write_bytes(b'no image')
    assert f'{project}/images/1.png is not a readable image. Copy it again' in last_line(train(project))
    (project / 'images/1.png').write_bytes(b'')
    message = last_line(train(project, 'train_dataloader.num_workers=1'))
    assert 'an image file is empty or broken. `python tools/misc/check_data.py CONFIG --all-images`' in message


def test_tool_lists_errors_and_warnings(project):
    change(project / 'annotations.json', GOOD_EDITS['unknown image'])
    result = run_script(CHECK, ['tiny.py'], project)
    assert result.code == 0 and result.stdout.splitlines()[-1] == '0 errors, 1 warning'
    change(project / 'val.json', edit_all(area=0))
    result = run_script(CHECK, ['tiny.py', '--all-images', '--cfg-options', 'model.bbox_head.num_classes=3'], project)
    lines = result.stdout.splitlines()[-4:]
    assert result.code == 1 and lines[-1] == '2 errors, 1 warning'
    assert [line.partition(':')[0] for line in lines[:3]] == ['error', 'error', 'warning']
    assert 'num_classes is 3' in lines[0] and 'val.json: 2 of 2 annotations have an "area" of 0' in lines[1]


# The page


def test_page_shows_what_the_checks_found(project):
    change(project / 'annotations.json', lambda content: content['annotations'][0].pop('area'))
    result = run_script(CHECK, ['tiny.py', '--out', 'data.html'], project)
    assert result.code == 1 and 'written to data.html' in result.stdout
    page = (project / 'data.html').read_text()
    assert '&quot;annotations&quot; without &quot;area&quot;: id 1' in page


def test_page_does_not_replace_what_a_user_made(project):
    before = (project / 'tiny.py').read_bytes()
    result = run_script(CHECK, ['tiny.py', '--out', 'tiny.py'], project)
    assert result.code == 1 and 'tiny.py exists and is no report' in result.stderr
    assert (project / 'tiny.py').read_bytes() == before
