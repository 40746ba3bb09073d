"""A config is proposed from an annotation file: its settings fit the data, and it trains."""

import json

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from embedmask_mmdet.analysis import suggestions
from embedmask_mmdet.analysis.suggestions import suggest, summarize
from tests.builders import CLASSES, PLUS_CONFIG, ROOT, tiny_model_cfg
from tests.scripts import run_script

TOOL = ROOT / 'tools' / 'misc' / 'suggest_config.py'


def write_annotations(path, sides, image_size=(640, 480), num_images=10, classes=('a',), **changes):
    """Write images that each have squares with these sides, of one class after the other."""
    images = [dict(id=i, file_name=f'{i}.png', width=image_size[0], height=image_size[1]) for i in range(num_images)]
    annotations = [
        dict(id=0, image_id=image['id'], category_id=i % len(classes), iscrowd=0, bbox=[0, 0, side, side], **changes)
        for image in images
        for i, side in enumerate(sides)
    ]
    categories = [dict(id=i, name=name) for i, name in enumerate(classes)]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


def suggest_for(tmp_path, *args, size='small', **kwargs):
    suggestions = suggest(summarize(write_annotations(tmp_path / 'train.json', *args, **kwargs)), size)
    return {each.name: each.value for each in suggestions}, {each.name: each.reason for each in suggestions}


def test_tiny_dense_objects_get_larger_images_finer_levels_and_more_detections(tmp_path):
    values, reasons = suggest_for(tmp_path, [9] * 214, (600, 400))
    assert values['test_scale'] == (1200, 800)
    assert (values['finest_stride'], values['coord_scale'], values['max_per_img']) == (4, 16, 300)
    assert reasons['finest_stride'] == 'half of the objects are below 24 pixels wide after resizing'
    assert reasons['max_per_img'].startswith('the image with most instances has 214; ')


def test_one_large_object_an_image_gets_smaller_images(tmp_path):
    values, reasons = suggest_for(tmp_path, [1500], (4000, 3000), num_images=200)
    assert values['test_scale'] == (1072, 800)
    assert values['scales'] == [(848, 640), (1072, 800), (1280, 960)]
    assert (values['finest_stride'], values['coord_scale'], values['max_per_img']) == (8, 32, 100)
    assert values['max_iters'] == 2500
    assert 'each of 200 images is seen 50 times' in reasons['max_iters']


def test_mixed_sizes_warn_of_objects_that_remain_tiny(tmp_path):
    values, reasons = suggest_for(tmp_path, [12, 80, 100, 120, 300], (2000, 1500))
    assert (values['test_scale'], values['finest_stride']) == ((1072, 800), 8)
    assert 'a tenth is below' not in suggest_for(tmp_path, [80] * 5, (2000, 1500))[1]['test_scale']
    assert 'a tenth is below' in reasons['test_scale'] and 'tiles' in reasons['test_scale']


def test_many_classes_take_those_with_instances_and_name_the_rare(tmp_path):
    classes = tuple(f'class {i}' for i in range(30))
    path = write_annotations(tmp_path / 'train.json', [40] * 30, classes=classes)
    content = json.loads(path.read_text())
    content['categories'].insert(0, dict(id=99, name='root'))
    content['annotations'] = [
        each for each in content['annotations'] if each['category_id'] != 3 or each['image_id'] < 2
    ]
    path.write_text(json.dumps(content))
    suggestions = {each.name: each for each in suggest(summarize(path), 'r50')}
    assert suggestions['classes'].value == classes
    assert suggestions['classes'].reason.startswith('30 of 31 categories have instances; fewer than 10')
    assert suggestions['classes'].reason.endswith('class 3 (2)')
    assert suggestions['size'].value == 'r50'


@pytest.mark.parametrize(('num_images', 'max_iters'), [(1, 600), (100, 1200), (2000, 12000), (118287, 354900)])
def test_iterations_follow_from_the_number_of_images(tmp_path, num_images, max_iters):
    assert suggest_for(tmp_path, [40], num_images=num_images)[0]['max_iters'] == max_iters


def test_images_of_the_right_size_stay(tmp_path):
    assert suggest_for(tmp_path, [32], (512, 512))[0]['test_scale'] == (512, 512)


def run(folder, *arguments):
    return run_script(TOOL, list(map(str, arguments)), folder)


@pytest.mark.parametrize('size', ['small', 'r50'])
def test_config_is_written_and_trains(data_root, tmp_path, size):
    out = tmp_path / 'configs' / 'mine.py'
    annotations = data_root / 'annotations.json'
    options = ['--images', data_root / 'images', '--out', out, '--size', size]
    ran = run(data_root, 'annotations.json', annotations, *options)
    assert ran.code == 0, ran.stderr
    assert f"size = '{size}': " in ran.stdout and 'max_per_img = 100: the image with most instances has 3' in ran.stdout
    assert '# Here: the image with most instances has 3\nmax_per_img = 100' in out.read_text()
    cfg = Config.fromfile(out)
    assert set(cfg.classes) == set(CLASSES) and cfg.model.backbone.depth == (18 if size == 'small' else 50)
    assert cfg.val_dataloader.dataset.ann_file == 'annotations.json'
    cfg.model = tiny_model_cfg(PLUS_CONFIG)
    cfg.work_dir = str(tmp_path / 'work')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 1


def test_existing_file_is_not_written_over(data_root, tmp_path):
    (tmp_path / 'mine.py').write_text('mine')
    ran = run(data_root, 'annotations.json', '--images', 'images', '--out', tmp_path / 'mine.py')
    assert ran.code == 1 and 'mine.py exists and was not changed. Choose another name for --out.' in ran.stderr
    assert (tmp_path / 'mine.py').read_text() == 'mine'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.json', '--images', 'images'], 'none.json cannot be read: No such file'),
        (['annotations.json', '--images', 'pictures'], 'image folder pictures does not exist'),
        (['annotations.json', '--images', '.'], '4 of 4 images of annotations.json are not in .: 1.png'),
        (['annotations.json', 'none.json', '--images', 'images'], 'none.json cannot be read'),
        (['images/1.png', '--images', 'images'], '1.png is not'),
    ],
)
def test_wrong_paths_end_with_one_line(data_root, tmp_path, arguments, message):
    ran = run(data_root, *arguments, '--out', tmp_path / 'mine.py')
    assert ran.code == 1 and message in ran.stderr and 'Traceback' not in ran.stderr
    assert not (tmp_path / 'mine.py').exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(bbox=None), 'has an entry without "bbox"'),
        (dict(bbox=[0, 0, float('nan'), 1]), r'Annotation 0 of .* has the bbox \[0, 0, nan, 1\]'),
        (dict(bbox=[0, 0, 0.5, 0.5]), 'Convert normalized coordinates'),
        (dict(bbox=[0, 0, 0, 0]), 'no instance with a box'),
        (dict(iscrowd=1), 'no instance with a box'),
    ],
)
def test_annotations_that_say_nothing_are_refused(tmp_path, changes, message):
    path = write_annotations(tmp_path / 'train.json', [10])
    content = json.loads(path.read_text())
    for annotation in content['annotations']:
        annotation.update(changes)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        summarize(path)


def test_installed_package_is_named_instead_of_a_path(monkeypatch, tmp_path):
    monkeypatch.setattr(suggestions, 'IN_REPOSITORY', False)
    suggestions.write_config(ROOT / 'configs' / 'embedmask_own-data.py', tmp_path / 'mine.py', [])
    assert "_base_ = 'embedmask_mmdet::embedmask/embedmask-plus_r50_1x_coco.py'" in (tmp_path / 'mine.py').read_text()
