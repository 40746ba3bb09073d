"""Bad data and checkpoints end a run with an error that names them; odd data do not."""

import json

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner

from embedmask_mmdet.engine import EmbedMaskPackagesHook
from embedmask_mmdet.engine.checks import check_metrics
from embedmask_mmdet.errors import InputError
from tests.tiny import tiny_cfg, write_tiny_coco


@pytest.fixture
def cfg(tmp_path):
    return tiny_cfg(write_tiny_coco(tmp_path / 'data'), tmp_path / 'work')


@pytest.fixture
def annotations(tmp_path):
    """Change the annotation file in place."""

    def change(edit):
        path = tmp_path / 'data' / 'annotations.json'
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return change


def train(cfg):
    return Runner.from_cfg(cfg).train()


def test_odd_annotations_are_no_errors(cfg, annotations):
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


def test_number_of_classes(cfg):
    cfg.model.bbox_head.num_classes = 80
    with pytest.raises(InputError, match=r'num_classes is 80, but CocoDataset .*annotations.json has 2 classes'):
        train(cfg)


def test_names_of_classes(cfg):
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = dict(classes=('disc', 'rectangel'))
    with pytest.raises(InputError, match='only 1 of the 2 classes.*rectangel'):
        train(cfg)


def test_classes_that_are_a_string(cfg):
    cfg.train_dataloader.dataset.metainfo = dict(classes='disc')
    with pytest.raises(InputError, match=r"write \('disc',\)"):
        train(cfg)


def test_missing_image(cfg, tmp_path):
    (tmp_path / 'data' / 'images' / '3.png').unlink()
    with pytest.raises(InputError, match=r'images: 3\.png'):
        train(cfg)


def test_missing_folder(cfg):
    cfg.train_dataloader.dataset.data_prefix = dict(img='pictures/')
    with pytest.raises(InputError, match='image folder .*pictures.* does not exist'):
        train(cfg)


def test_dataset_without_masks(cfg, annotations):
    annotations(lambda content: [a.pop('segmentation') for a in content['annotations'][:4]])
    with pytest.raises(InputError, match=r'instances without "segmentation", in images 1\.png, 2\.png'):
        train(cfg)


def test_wrapped_datasets_are_checked_too(cfg):
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    cfg.model.bbox_head.num_classes = 3
    with pytest.raises(InputError, match='num_classes is 3'):
        train(cfg)


def test_metric_with_the_annotations_of_other_images(cfg, tmp_path):
    content = json.loads((tmp_path / 'data' / 'annotations.json').read_text())
    for image in content['images']:
        image['file_name'] = f'other{image["id"]}.png'
    (tmp_path / 'train.json').write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(tmp_path / 'train.json')
    with pytest.raises(InputError, match=r'annotation file of val_evaluator .* no images 1\.png, 2\.png'):
        train(cfg)
    cfg.load_from = str(tmp_path / 'model.pth')
    torch.save(dict(state_dict=Runner.from_cfg(cfg).model.state_dict()), cfg.load_from)
    with pytest.raises(InputError, match='annotation file of test_evaluator'):
        Runner.from_cfg(cfg).test()


def test_metric_whose_annotations_lack_iscrowd(cfg, annotations):
    annotations(lambda content: [a.pop('iscrowd') for a in content['annotations'][:2]])
    with pytest.raises(
        InputError, match=r'without "iscrowd" in the file of val_evaluator, ids 1, 2: .* add "iscrowd": 0'
    ):
        train(cfg)
    cfg.val_evaluator.update(format_only=True, outfile_prefix=str(cfg.work_dir))
    train(cfg)


def test_metric_without_an_annotation_file_is_not_checked(cfg):
    dataset = Runner.from_cfg(cfg).build_dataloader(cfg.val_dataloader).dataset
    check_metrics(Evaluator(CocoMetric(metric='segm')), dataset, 'val_evaluator')


def test_package_that_is_missing_is_named():
    with pytest.raises(InputError, match=r'needs no_such_package, .*: pip install "a<2"'):
        EmbedMaskPackagesHook({'no_such_package.eval': '"a<2"'})


def test_package_that_is_too_old_for_numpy_is_named(tmp_path, monkeypatch):
    (tmp_path / 'old_package.py').write_text(
        'import numpy as np\n\ndef area(x):\n    return np.sum(x.astype(np.gone))\n'
    )
    (tmp_path / 'good_package.py').write_text('import numpy as np\n\nnothing = np.zeros(0)\n')
    monkeypatch.syspath_prepend(tmp_path)
    EmbedMaskPackagesHook({'good_package': 'a'})
    with pytest.raises(InputError, match=r'the installed old_package uses np\.gone, which numpy .*: pip install a'):
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
