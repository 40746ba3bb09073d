"""Each dataset's config trains and tests on a dataset in that layout, and gives full marks to perfect detections."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import mmdet.registry
import numpy as np
import pycocotools.mask
import pytest
import torch
from mmdet.datasets import CocoDataset, LVISV1Dataset
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pycocotools.coco import COCO

from embedmask_mmdet.cli.launch import load_installed
from embedmask_mmdet.datasets import coco2014
from embedmask_mmdet.engine import EmbedMaskPackagesHook
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.structures import RLEMasks
from tests.builders import ROOT, draw_shapes, tiny_model_cfg

CONFIGS = ROOT / 'configs'
SIZE = (96, 128)
COCO_CATEGORIES = [dict(id=i + 1 + i // 10, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'])]
LVIS_CATEGORIES = [
    dict(id=i + 1, name=name, frequency='rcf'[i % 3]) for i, name in enumerate(LVISV1Dataset.METAINFO['classes'])
]


def draw_instances(path, seed):
    """Write an image and return its instances, which do not overlap: from 1 in a map ``(h, w)``, with their labels."""
    image, masks, labels = draw_shapes(np.random.default_rng(seed), SIZE, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    instances = np.zeros(SIZE, np.uint16)
    for number, mask in enumerate(masks, start=1):
        instances[mask > 0] = number
    return instances, labels


def write_coco(path, folder, file_names, categories):
    """Write images and an annotation file.

    Image ids are the numbers in the file names; our two classes are the 4th and the 60th category.
    """
    images, annotations = [], []
    for name in file_names:
        image_id = int(Path(name).stem.split('_')[-1])
        instances, labels = draw_instances(folder / name, image_id)
        images.append(dict(id=image_id, file_name=name, height=SIZE[0], width=SIZE[1]))
        for number, label in enumerate(labels, start=1):
            rle = pycocotools.mask.encode(np.asfortranarray(instances == number, np.uint8))
            annotations.append(
                dict(
                    id=10 * image_id + number,
                    image_id=image_id,
                    category_id=categories[(3, 59)[label] if len(categories) > 2 else label]['id'],
                    bbox=pycocotools.mask.toBbox(rle).tolist(),
                    area=int(pycocotools.mask.area(rle)),
                    iscrowd=0,
                    segmentation=dict(size=list(SIZE), counts=rle['counts'].decode()),
                )
            )
    content = dict(images=images, annotations=annotations, categories=categories)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def write_image_info(path, folder, file_names):
    content = write_coco(path, folder, file_names, COCO_CATEGORIES)
    path.write_text(json.dumps({key: value for key, value in content.items() if key != 'annotations'}))


def names(prefix, ids):
    return [f'{prefix}{image_id:012d}.jpg' for image_id in ids]


def write_coco_2014(root):
    annotations = root / 'annotations'
    write_coco(
        annotations / 'instances_train2014.json', root / 'train2014', names('COCO_train2014_', (1, 2)), COCO_CATEGORIES
    )
    val = names('COCO_val2014_', (3, 4, 5, 6))
    write_coco(annotations / 'instances_val2014.json', root / 'val2014', val, COCO_CATEGORIES)
    write_coco(annotations / 'instances_val2017.json', root / 'val2017', names('', (4, 6)), COCO_CATEGORIES)
    write_image_info(annotations / 'image_info_test2014.json', root / 'test2014', names('COCO_test2014_', (7, 8)))
    coco2014.write_lists(annotations, annotations)


def write_coco_2017(root):
    for split, ids in dict(train=(1, 2, 3, 5), val=(4, 6)).items():
        write_coco(
            root / f'annotations/instances_{split}2017.json', root / f'{split}2017', names('', ids), COCO_CATEGORIES
        )
    write_image_info(root / 'annotations/image_info_test-dev2017.json', root / 'test2017', names('', (7, 8)))


def write_lvis(root):
    for split, ids in dict(train=(1, 2, 3, 5), val=(4, 6)).items():
        path = root / f'annotations/lvis_v1_{split}.json'
        content = write_coco(path, root / f'{split}2017', names('', ids), LVIS_CATEGORIES)
        for image in content['images']:
            image['coco_url'] = f'http://images.cocodataset.org/{split}2017/{image.pop("file_name")}'
            image.update(neg_category_ids=[7], not_exhaustive_category_ids=[])
        for annotation in content['annotations']:
            del annotation['iscrowd']
        path.write_text(json.dumps(content))


def write_cityscapes(root):
    """Write images and label images, and convert them with MMDetection's own tool."""
    converter = load_installed('dataset_converters/cityscapes.py')
    (root / 'annotations').mkdir(parents=True)
    for split, ids in dict(train=(1, 2, 3, 5), val=(4, 6)).items():
        for number in ids:
            stem = f'{split}/aachen/aachen_000000_{number:06d}'
            instances, labels = draw_instances(root / f'leftImg8bit/{stem}_leftImg8bit.png', number)
            kinds = np.array([7, *(26 if label else 24 for label in labels)], np.uint16)[instances]
            ids_of_pixels = np.where(instances > 0, kinds * 1000 + instances, kinds)
            (root / 'gtFine' / stem).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / f'gtFine/{stem}_gtFine_instanceIds.png'), ids_of_pixels.astype(np.uint16))
            cv2.imwrite(str(root / f'gtFine/{stem}_gtFine_labelIds.png'), kinds.astype(np.uint8))
        files = converter.collect_files(str(root / 'leftImg8bit' / split), str(root / 'gtFine' / split))
        out = root / 'annotations' / f'instancesonly_filtered_gtFine_{split}.json'
        content = converter.cvt_annotations(converter.collect_annotations(files), str(out))
        # pycocotools never counts the instance with id 0 as found, which is one of many in the whole of Cityscapes.
        for annotation in content['annotations']:
            annotation['id'] += 1
        out.write_text(json.dumps(content))


def write_own(root):
    categories = [dict(id=1, name='nucleus'), dict(id=5, name='not wanted')]
    for split, ids in dict(train=(1, 2, 3), test=(4, 6)).items():
        write_coco(root / f'annotations/{split}.json', root / 'images', names('', ids), categories)


DATASETS = {
    'embedmask_r50_1x_coco2014': ('coco', write_coco_2014, 4),
    'embedmask_r101_ms-3x_coco2014': ('coco', write_coco_2014, 4),
    'embedmask_r50_1x_coco2014-test': ('coco', write_coco_2014, 4),
    'embedmask_r50_1x_coco-test-dev': ('coco', write_coco_2017, 4),
    'embedmask_r50_sample1e-3_ms-1x_lvis-v1': ('lvis_v1', write_lvis, 4),
    'embedmask_r50_1x_cityscapes': ('cityscapes', write_cityscapes, 8 * 4),
    'embedmask_own-data': ('nuclei', write_own, 3),
}


def without_resizing(node):
    """Take steps that change the size out of every pipeline of a config."""
    if isinstance(node, dict):
        return {key: without_resizing(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [without_resizing(each) for each in node if 'Resize' not in str(getattr(each, 'type', ''))]
    return node


def load_config(name):
    """Load a config and make its model and its images small."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    if packages := cfg.default_hooks.get('packages'):
        try:
            EmbedMaskPackagesHook(packages.packages)
        except InputError as error:
            pytest.skip(str(error))
    model = tiny_model_cfg(**cfg.model.test_cfg)
    model.bbox_head.num_classes = cfg.model.bbox_head.num_classes
    model.backbone.update(base_channels=8, stem_channels=8)
    model.neck.in_channels = [8, 16, 32, 64]
    # There are hardly any detections after one epoch.
    model.test_cfg.score_thr = 0.0
    cfg.model = model
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, dataset=without_resizing(loader.dataset))
    cfg.train_dataloader.batch_size = 2
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = 'work_dirs/tiny'
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.default_hooks.checkpoint.interval = 2
    else:
        cfg.train_cfg.max_epochs = 1
    return cfg


def in_folder_with_data(name, cfg, folder, monkeypatch):
    """Go to a folder that has the dataset where the config looks for it."""
    monkeypatch.chdir(folder)
    where, write, _ = DATASETS[name]
    write(Path('data') / where)
    return cfg


@pytest.mark.parametrize('name', DATASETS)
def test_config_trains_and_tests(name, tmp_path, monkeypatch):
    runner = Runner.from_cfg(in_folder_with_data(name, load_config(name), tmp_path, monkeypatch))
    runner.train()
    assert len(runner.train_dataloader.dataset) == DATASETS[name][2]
    metrics = runner.test()
    if 'test' in name:
        check_result_files(runner.cfg.test_evaluator)
    else:
        segm = [value for key, value in metrics.items() if key.endswith(('segm_mAP', 'segm_AP'))]
        assert len(segm) == 1 and np.isfinite(segm[0])


def check_result_files(evaluator):
    """The files hold detections in images and categories of the annotation file, as the server takes them."""
    truth = COCO(evaluator.ann_file)
    for kind in ('bbox', 'segm'):
        found = json.loads(Path(f'{evaluator.outfile_prefix}.{kind}.json').read_text())
        assert {each['image_id'] for each in found} == {7, 8}
        assert {each['category_id'] for each in found} <= set(truth.getCatIds())


FULL_MARKS = ('bbox_mAP', 'segm_mAP', 'bbox_AP', 'segm_AP', 'mAP')


@pytest.mark.parametrize('name', [name for name in DATASETS if 'test' not in name])
def test_perfect_detections_get_full_marks(name, tmp_path, monkeypatch):
    """Images, classes and instances are the same ones to the dataset and to its metrics."""
    cfg = in_folder_with_data(name, load_config(name), tmp_path, monkeypatch)
    init_default_scope('mmdet')
    dataset = mmdet.registry.DATASETS.build(cfg.test_dataloader.dataset)
    for in_format in (as_bitmaps, as_rles):
        evaluator = Evaluator(cfg.test_evaluator)
        evaluator.dataset_meta = dataset.metainfo
        for item in dataset:
            sample, truth = item['data_samples'], item['data_samples'].gt_instances
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes.tensor,
                labels=truth.labels,
                scores=torch.ones(len(truth)),
                masks=in_format(truth.masks.masks),
            )
            evaluator.process([sample])
        metrics = evaluator.evaluate(len(dataset))
        marks = [value for key, value in metrics.items() if key.rpartition('/')[2] in FULL_MARKS]
        assert len(marks) >= 2
        assert marks == pytest.approx([1] * len(marks))


def as_bitmaps(masks):
    return torch.from_numpy(masks).bool()


def as_rles(masks):
    return RLEMasks(pycocotools.mask.encode(np.asfortranarray(masks.transpose(1, 2, 0))), masks.shape[1:])


def plain(node, left_out=('_scope_', 'backend_args', 'test_mode')):
    """A config as it means, without what need not be said."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key not in left_out}
    if isinstance(node, (list, tuple)):
        return [plain(each) for each in node]
    # Both load the same masks.
    return 'LoadAnnotations' if node == 'EmbedMaskLoadAnnotations' else node


@pytest.mark.parametrize(
    ('name', 'base'),
    [
        ('embedmask_r50_sample1e-3_ms-1x_lvis-v1', 'lvis_v1_instance'),
        ('embedmask_r50_1x_cityscapes', 'cityscapes_instance'),
    ],
)
def test_data_settings_are_mmdetections(name, base):
    ours = Config.fromfile(CONFIGS / f'{name}.py')
    theirs = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs/_base_/datasets' / f'{base}.py')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert plain(ours[loader].dataset) == plain(theirs[loader].dataset)
    evaluator = plain(ours.val_evaluator)
    if isinstance(evaluator, dict):
        assert not evaluator.pop('format_only')
    assert evaluator == plain(theirs.val_evaluator)


def test_coco_2017_is_what_the_coco_configs_have():
    """The file of the two years read alike, and 2017's says what MMDetection's says."""
    cfg = Config.fromfile(CONFIGS / 'embedmask_r50_1x_coco-test-dev.py')
    trained = plain(cfg.train_dataloader.dataset)
    del trained['pipeline']
    assert [trained] == plain(cfg.coco2017.train)
    assert plain(cfg.coco2017.val).items() <= plain(cfg.val_dataloader.dataset).items()
    assert cfg.coco2017.val_evaluator.items() <= cfg.val_evaluator.items()
    assert cfg.coco2017.keys() == Config.fromfile(CONFIGS / 'embedmask_r50_1x_coco2014.py').coco2014.keys()


def test_own_data_starts_from_a_checkpoint_with_other_classes(tmp_path, monkeypatch):
    cfg = in_folder_with_data('embedmask_own-data', load_config('embedmask_own-data'), tmp_path, monkeypatch)
    other = copy.deepcopy(cfg)
    other.model.bbox_head.num_classes = 80
    weights = Runner.from_cfg(other).model.state_dict()
    torch.save(dict(state_dict=weights), 'coco.pth')
    cfg.load_from = 'coco.pth'
    cfg.optim_wrapper.optimizer.lr = 0.0
    trained = Runner.from_cfg(cfg).train().state_dict()
    same = [name for name in weights if weights[name].shape == trained[name].shape]
    assert set(weights) - set(same) == {'bbox_head.conv_cls.weight', 'bbox_head.conv_cls.bias'}
    assert all(torch.equal(weights[name], trained[name]) for name in same)
    assert len(list(Path('work_dirs/tiny').glob('best_coco_segm_mAP*.pth'))) == 1


# The converter


@pytest.fixture
def annotations(tmp_path):
    write_coco_2014(tmp_path)
    folder = tmp_path / 'annotations'
    for name in (coco2014.MINIVAL, coco2014.VALMINUSMINIVAL):
        (folder / name).unlink()
    return folder


def read(path):
    return json.loads(path.read_text())


def run_converter(*arguments):
    command = [sys.executable, ROOT / 'tools/dataset_converters/coco2014.py', *arguments]
    return subprocess.run([str(each) for each in command], capture_output=True, text=True)


def error_of(result):
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr and result.stderr.count('\n') == 1
    return result.stderr


def by_image(content):
    return {
        image['id']: (image, [each for each in content['annotations'] if each['image_id'] == image['id']])
        for image in content['images']
    }


def test_lists_divide_val2014(annotations):
    result = run_converter(annotations)
    assert result.returncode == 0, result.stderr
    assert '2 images, 6 instances' in result.stdout
    assert 'the complete file has 40504' in result.stdout
    whole = read(annotations / 'instances_val2014.json')
    minival, rest = (read(annotations / name) for name in (coco2014.MINIVAL, coco2014.VALMINUSMINIVAL))
    assert set(by_image(minival)) == {4, 6}
    assert {**by_image(minival), **by_image(rest)} == by_image(whole)
    assert minival['categories'] == rest['categories'] == whole['categories']
    assert len(list(annotations.iterdir())) == 6


def test_lists_that_are_there_stay(annotations, tmp_path):
    assert run_converter(annotations, '--out', tmp_path / 'out').returncode == 0
    (tmp_path / 'out' / coco2014.MINIVAL).write_text('mine')
    result = run_converter(annotations, '--out', tmp_path / 'out')
    assert 'exist already' in result.stdout
    assert (tmp_path / 'out' / coco2014.MINIVAL).read_text() == 'mine'


def without_annotations(path, ids, prefix=''):
    images = [dict(id=image_id, file_name=file_name) for image_id, file_name in zip(ids, names(prefix, ids))]
    path.write_text(json.dumps(dict(images=images, annotations=[], categories=[])))


def test_whole_of_coco_gives_5000_and_35504(annotations):
    without_annotations(annotations / 'instances_val2014.json', range(40504), 'COCO_val2014_')
    without_annotations(annotations / 'instances_val2017.json', range(0, 40000, 8))
    result = run_converter(annotations)
    assert 'minival2014.json: 5000 images' in result.stdout
    assert 'valminusminival2014.json: 35504 images' in result.stdout
    assert 'note' not in result.stdout


def test_incomplete_val2017_would_let_test_images_be_trained_on(annotations):
    without_annotations(annotations / 'instances_val2014.json', range(40504), 'COCO_val2014_')
    without_annotations(annotations / 'instances_val2017.json', range(4999))
    assert 'instances_val2017.json has 4999 images instead of 5000' in error_of(run_converter(annotations))
    assert not (annotations / coco2014.VALMINUSMINIVAL).exists()


def test_missing_file_is_named(annotations):
    (annotations / 'instances_val2017.json').unlink()
    error = error_of(run_converter(annotations))
    assert 'instances_val2017.json does not exist' in error
    assert 'annotations_trainval2017.zip' in error


def test_swapped_files_are_recognised(annotations):
    first, second = annotations / 'instances_val2014.json', annotations / 'instances_val2017.json'
    content = first.read_text()
    first.write_text(second.read_text())
    second.write_text(content)
    assert 'instances_val2014.json is not what its name says: it has an image 000000000004.jpg' in error_of(
        run_converter(annotations)
    )


@pytest.mark.parametrize('source', ['instances_train2014.json', 'image_info_test2014.json'])
def test_file_of_another_set_is_recognised(annotations, source):
    (annotations / 'instances_val2014.json').write_bytes((annotations / source).read_bytes())
    assert 'instances_val2014.json' in error_of(run_converter(annotations))


def test_train2017_is_not_taken_for_val2017(annotations):
    without_annotations(annotations / 'instances_val2017.json', (1, 2, 3, 5))
    assert '2 of 4 images of instances_val2017.json are not in instances_val2014.json, such as ID 1' in error_of(
        run_converter(annotations)
    )


def test_damaged_file_is_named(annotations):
    (annotations / 'instances_val2014.json').write_text('{"images": [')
    assert 'instances_val2014.json is damaged' in error_of(run_converter(annotations))


# The page on data of one's own


def scripts_of_the_page():
    """The Python files that the page tells its readers to write, by name."""
    page = (ROOT / 'docs' / 'own-data.md').read_text()
    return dict(re.findall(r'`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```', page, re.S))


def run_script(name, folder, *arguments):
    (folder / name).write_text(scripts_of_the_page()[name])
    command = [sys.executable, name, *map(str, arguments)]
    subprocess.run(command, cwd=folder, check=True)


def test_fill_in_computes_what_annotations_lack(tmp_path):
    path = tmp_path / 'annotations.json'
    content = write_coco(path, tmp_path / 'images', names('', (1, 2)), COCO_CATEGORIES)
    lacking = copy.deepcopy(content)
    for annotation in lacking['annotations']:
        for key in ('id', 'iscrowd', 'area', 'bbox'):
            del annotation[key]
        annotation['id'] = annotation['image_id']
    lacking['annotations'][0]['iscrowd'] = None
    for number, annotation in enumerate(content['annotations'], start=1):
        annotation['id'] = number
    path.write_text(json.dumps(lacking))
    run_script('fill_in.py', tmp_path, path)
    assert read(path) == content


def test_label_images_become_annotations(tmp_path):
    (tmp_path / 'labels').mkdir()
    maps = [draw_instances(tmp_path / 'images' / f'{name}.png', seed)[0] for seed, name in enumerate('ab')]
    for labels, name in zip(maps, 'ab'):
        cv2.imwrite(str(tmp_path / 'labels' / f'{name}.tif'), labels)
    run_script('from_labels.py', tmp_path, 'labels', 'train.json')
    coco = COCO(tmp_path / 'train.json')
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for image_id, labels in enumerate(maps, start=1):
        assert coco.imgs[image_id]['file_name'] == f'{"ab"[image_id - 1]}.png'
        masks = [coco.annToMask(annotation) for annotation in coco.imgToAnns[image_id]]
        assert np.array_equal(masks, [labels == value for value in np.unique(labels)[1:]])
