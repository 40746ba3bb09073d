"""Bad data, checkpoints and packages stop a run with an error that names them. Unusual data do not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset, MultiImageMixDataset
from mmdet.evaluation import CocoMetric, VOCMetric
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner

from embedmask_mmdet.engine import EmbedMaskPackagesHook
from embedmask_mmdet.engine.data_checks import check_dataset, check_metrics
from embedmask_mmdet.errors import InputError
from tests.builders import CLASSES, tiny_cfg, write_tiny_coco


@pytest.fixture
def data_root(tmp_path):
    return write_tiny_coco(tmp_path / 'data')


@pytest.fixture
def cfg(data_root, tmp_path):
    return tiny_cfg(data_root, tmp_path / 'work')


@pytest.fixture
def annotations(data_root):
    """Change the annotation file in place."""

    def change(edit):
        path = data_root / 'annotations.json'
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return change


def train(cfg):
    return Runner.from_cfg(cfg).train()


def build_dataset(data_root, ann_file='annotations.json', classes=CLASSES, **kwargs):
    options = dict(data_prefix=dict(img='images/'), metainfo=dict(classes=classes), pipeline=[])
    return CocoDataset(data_root=str(data_root), ann_file=str(ann_file), **dict(options, **kwargs))


class OwnDataset(BaseDataset):
    """A dataset that is not in COCO format."""

    def __init__(self, infos, metainfo=None):
        self.infos = infos
        super().__init__(metainfo=metainfo)

    def load_data_list(self):
        return self.infos


# Datasets


def test_good_dataset_passes(data_root):
    check_dataset(build_dataset(data_root), num_classes=2)


def test_unusual_annotations_can_be_trained_on(cfg, annotations):
    def edit(content):
        first, second, third = content['annotations'][:3]
        first['iscrowd'] = 1
        second['area'] = 0
        third['bbox'] = [5, 5, 0, 0]
        content['images'].append(dict(id=99, file_name='1.png', height=96, width=128))
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 2]

    annotations(edit)
    cfg.train_dataloader.dataset.filter_cfg = None
    train(cfg)


@pytest.mark.parametrize('num_classes', [1, 80])
def test_number_of_classes(data_root, num_classes):
    message = (
        rf'num_classes is {num_classes}, but CocoDataset .*annotations\.json has 2 classes \(disc, rectangle\)\. '
        r'Set model\.bbox_head\.num_classes=2'
    )
    with pytest.raises(InputError, match=message):
        check_dataset(build_dataset(data_root), num_classes)


@pytest.mark.parametrize(
    ('classes', 'num_found'), [(('disc', 'rectangel'), 1), (('a', 'b'), 0)], ids=['one wrong name', 'all wrong']
)
def test_names_of_classes(data_root, classes, num_found):
    dataset = build_dataset(data_root, classes=classes, test_mode=True)
    with pytest.raises(InputError, match=rf'only {num_found} of the 2 classes.*{classes[1]}.*Write the names as in'):
        check_dataset(dataset, num_classes=2)


def test_two_categories_of_one_name(data_root, annotations):
    annotations(lambda content: content['categories'].append(dict(id=3, name='disc')))
    with pytest.raises(InputError, match=r'has 3 categories for the 2 classes .*\(disc, rectangle\)'):
        check_dataset(build_dataset(data_root), num_classes=2)


def test_classes_that_are_a_string(data_root):
    with pytest.raises(InputError, match=r"must be a tuple, but is a string\. Write \('disc',\)"):
        check_dataset(build_dataset(data_root, classes='disc'), num_classes=4)


@pytest.mark.parametrize('metainfo', [None, dict(classes=CLASSES)], ids=['no classes', 'classes without categories'])
def test_dataset_in_another_format_passes(metainfo):
    check_dataset(OwnDataset([dict(), dict(instances=[dict(mask=[[0, 0, 4, 0, 4, 4]])])], metainfo), num_classes=2)


def test_images_that_are_missing(data_root):
    for number in (3, 2):
        (data_root / 'images' / f'{number}.png').unlink()
    with pytest.raises(InputError, match=r'annotations\.json are not in .*images: 2\.png, 3\.png\. Add them'):
        check_dataset(build_dataset(data_root), num_classes=2)


def test_image_folder_that_is_missing(data_root):
    (data_root / 'images').rename(data_root / 'pictures')
    message = r'image folder .*images of CocoDataset .* does not exist \(working folder: /'
    with pytest.raises(InputError, match=message):
        check_dataset(build_dataset(data_root), num_classes=2)
    (data_root / 'images').touch()
    with pytest.raises(InputError, match=message):
        check_dataset(build_dataset(data_root), num_classes=2)


def test_images_in_subfolders(data_root, annotations):
    annotations(lambda content: content['images'][1].update(file_name='more/2.png'))
    (data_root / 'images/more').mkdir()
    with pytest.raises(InputError, match=r'not in .*images/more: 2\.png\.'):
        check_dataset(build_dataset(data_root), num_classes=2)
    (data_root / 'images/2.png').rename(data_root / 'images/more/2.png')
    check_dataset(build_dataset(data_root), num_classes=2)


def test_images_in_the_working_folder(data_root, monkeypatch):
    monkeypatch.chdir(data_root / 'images')
    check_dataset(OwnDataset([dict(img_path='1.png')]), num_classes=2)
    with pytest.raises(InputError, match=r'are not in \.: 9\.png'):
        check_dataset(OwnDataset([dict(img_path='9.png')]), num_classes=2)


def test_images_in_remote_storage_are_not_looked_for():
    check_dataset(OwnDataset([dict(img_path='s3://bucket/images/1.png')]), num_classes=2)
    dataset = OwnDataset([dict(img_path='bucket/images/1.png')])
    dataset.backend_args = dict(backend='petrel')
    check_dataset(dataset, num_classes=2)
    for dataset.backend_args in (dict(backend='local'), {}, None):
        with pytest.raises(InputError, match='image folder bucket/images'):
            check_dataset(dataset, num_classes=2)


def test_instances_without_masks(data_root, annotations):
    annotations(lambda content: [a.pop('segmentation') for a in content['annotations'][:4]])
    with pytest.raises(InputError, match=r'instances without "segmentation" in the images 1\.png, 2\.png\. EmbedMask'):
        check_dataset(build_dataset(data_root), num_classes=2)


WRAPPERS = {
    'RepeatDataset': lambda dataset: RepeatDataset(dataset, 2),
    'MultiImageMixDataset': lambda dataset: MultiImageMixDataset(dataset, pipeline=[]),
    'ConcatDataset': lambda dataset: ConcatDataset([dataset, dataset]),
    'wrapper of ConcatDataset': lambda dataset: SimpleNamespace(dataset=ConcatDataset([dataset, dataset])),
}


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_datasets_are_checked(data_root, wrap):
    with pytest.raises(InputError, match=r'CocoDataset .*annotations\.json has only 1 of the 2 classes'):
        check_dataset(wrap(build_dataset(data_root, classes=('disc', 'rectangel'))), num_classes=2)


def test_all_concatenated_datasets_are_checked(data_root):
    good, bad = build_dataset(data_root), build_dataset(data_root, data_prefix=dict(img='nowhere/'))
    with pytest.raises(InputError, match='image folder .*nowhere'):
        check_dataset(ConcatDataset([good, bad]), num_classes=2)


# Metrics


def write_annotations(path, data_root, edit):
    """Write an edited copy of the dataset's annotation file."""
    content = json.loads((data_root / 'annotations.json').read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return str(path)


def rename_images(content):
    for image in content['images'][:2]:
        image['file_name'] = f'other{image["id"]}.png'


def remove_first_image(content):
    del content['images'][0]


def move_images(content):
    for image in content['images']:
        image['file_name'] = f'subfolder/{image["file_name"]}'


def remove_file_names(content):
    for image in content['images']:
        del image['file_name']


@pytest.mark.parametrize(
    ('edit', 'images'),
    [(rename_images, r'1\.png, 2\.png'), (remove_first_image, r'1\.png')],
    ids=['other file names', 'missing id'],
)
@pytest.mark.parametrize('wrap', [lambda dataset: dataset, WRAPPERS['MultiImageMixDataset']], ids=['bare', 'wrapped'])
def test_metric_with_the_annotations_of_other_images(data_root, tmp_path, edit, images, wrap):
    evaluator = Evaluator(CocoMetric(write_annotations(tmp_path / 'other.json', data_root, edit)))
    message = rf'annotation file of val_evaluator .* has no images {images} with the same ids\. Set val_evaluator\.ann_'
    with pytest.raises(InputError, match=message):
        check_metrics(evaluator, wrap(build_dataset(data_root)), 'val_evaluator')


@pytest.mark.parametrize('edit', [move_images, remove_file_names], ids=['other folder', 'no file names'])
def test_metric_that_names_the_images_otherwise(data_root, tmp_path, edit):
    evaluator = Evaluator(CocoMetric(write_annotations(tmp_path / 'same.json', data_root, edit)))
    check_metrics(evaluator, build_dataset(data_root), 'val_evaluator')


@pytest.mark.parametrize('info', [dict(img_path='1.png'), dict(img_id=1)], ids=['no id', 'no path'])
def test_metric_of_a_dataset_in_another_format(data_root, tmp_path, info):
    path = write_annotations(tmp_path / 'other.json', data_root, remove_file_names)
    check_metrics(Evaluator(CocoMetric(path)), OwnDataset([info]), 'val_evaluator')


def test_metric_whose_annotations_lack_iscrowd(data_root, annotations):
    annotations(lambda content: [a.pop('iscrowd') for a in content['annotations'][:2]])
    metric = CocoMetric(str(data_root / 'annotations.json'))
    check_metrics(Evaluator(metric), build_dataset(data_root), 'val_evaluator')
    assert [a['iscrowd'] for a in metric._coco_api.anns.values()] == [0] * 12


def test_metric_whose_annotations_lack_masks(data_root, annotations):
    annotations(lambda content: [a.update(segmentation=None) for a in content['annotations'][:2]])
    path, dataset = str(data_root / 'annotations.json'), build_dataset(data_root)
    message = r'annotation file of val_evaluator has annotations without "segmentation": id 1, id 2\. Masks cannot'
    with pytest.raises(InputError, match=message):
        check_metrics(Evaluator(CocoMetric(path, metric=['bbox', 'segm'])), dataset, 'val_evaluator')
    check_metrics(Evaluator(CocoMetric(path, metric='bbox')), dataset, 'val_evaluator')
    only_files = CocoMetric(path, metric='segm', format_only=True, outfile_prefix='x')
    check_metrics(Evaluator(only_files), dataset, 'val_evaluator')


def test_metric_without_the_classes_of_the_dataset(data_root, tmp_path):
    path = write_annotations(tmp_path / 'same.json', data_root, lambda content: content['categories'].pop())
    with pytest.raises(InputError, match=r'val_evaluator has only 1 of the 2 classes of its dataset \(disc, rectangle'):
        check_metrics(Evaluator(CocoMetric(path)), build_dataset(data_root), 'val_evaluator')


def test_metric_that_would_swap_the_names_of_classes(data_root):
    path, dataset = str(data_root / 'annotations.json'), build_dataset(data_root, classes=CLASSES[::-1])
    check_metrics(Evaluator(CocoMetric(path)), dataset, 'val_evaluator')
    with pytest.raises(InputError, match=r'val_evaluator\.classwise would give figures to the wrong classes'):
        check_metrics(Evaluator(CocoMetric(path, classwise=True)), dataset, 'val_evaluator')


def test_metrics_without_an_annotation_file_are_not_checked(data_root):
    metrics = [CocoMetric(metric='segm'), VOCMetric()]
    check_metrics(Evaluator(metrics), build_dataset(data_root), 'val_evaluator')


# The hook, in a whole run


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_training_checks_both_datasets(cfg, loader):
    cfg[loader].dataset.data_prefix = dict(img='pictures/')
    with pytest.raises(InputError, match='image folder .*pictures.* does not exist'):
        train(cfg)


def test_training_checks_the_metrics(cfg, data_root, tmp_path):
    cfg.val_evaluator.ann_file = write_annotations(tmp_path / 'other.json', data_root, rename_images)
    with pytest.raises(InputError, match='annotation file of val_evaluator'):
        train(cfg)


def test_testing_checks_dataset_and_metrics(cfg, data_root, tmp_path):
    cfg.load_from = str(tmp_path / 'model.pth')
    torch.save(dict(state_dict=Runner.from_cfg(cfg).model.state_dict()), cfg.load_from)
    ann_file = cfg.test_evaluator.ann_file
    cfg.test_evaluator.ann_file = write_annotations(tmp_path / 'other.json', data_root, rename_images)
    with pytest.raises(InputError, match='annotation file of test_evaluator'):
        Runner.from_cfg(cfg).test()
    cfg.test_evaluator.ann_file = ann_file
    cfg.test_dataloader.dataset.data_prefix = dict(img='pictures/')
    with pytest.raises(InputError, match='image folder .*pictures.* does not exist'):
        Runner.from_cfg(cfg).test()


# Packages


def test_package_that_is_missing():
    with pytest.raises(InputError, match=r'package no_such_package, .*\. Run: pip install "a<2"'):
        EmbedMaskPackagesHook({'json': 'b', 'no_such_package.eval': '"a<2"'})


def test_package_that_is_too_old_for_numpy(tmp_path, monkeypatch):
    (tmp_path / 'old_package.py').write_text(
        'import numpy as np\n\ndef area(x):\n    return np.sum(x.astype(np.gone))\n'
    )
    (tmp_path / 'good_package.py').write_text('import numpy as np\n\nnothing = np.zeros(0)  # warp.gone\n')
    monkeypatch.syspath_prepend(tmp_path)
    EmbedMaskPackagesHook({'good_package': 'a'})
    with pytest.raises(InputError, match=r'package old_package uses np\.gone, which numpy .* Run: pip install a'):
        EmbedMaskPackagesHook({'old_package': 'a'})


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_train_resume_and_test(cfg, tmp_path, mask_format):
    cfg.model.test_cfg.update(mask_format=mask_format, score_thr=0.0)
    train(cfg)
    cfg.resume = True
    cfg.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.epoch == 2
    cfg.resume, cfg.load_from = False, str(tmp_path / 'work' / 'epoch_2.pth')
    metrics = Runner.from_cfg(cfg).test()
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())
