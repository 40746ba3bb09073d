"""Refuse data and checkpoints that cannot be meant, before any training time is lost."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator

import numpy as np
from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from embedmask_mmdet.engine.loading import prepare_checkpoint
from embedmask_mmdet.errors import InputError, name_some
from embedmask_mmdet.models import EmbedMask


def innermost_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Go through the datasets inside of wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
        return
    for each in inner:
        yield from innermost_datasets(each)


def check_classes(dataset: BaseDataset, num_classes: int) -> None:
    """Compare the dataset's classes with the model's number of classes and with the annotation file.

    Args:
        dataset: With ``metainfo`` and, if of COCO's kind, ``cat_ids``.
        num_classes: Of the box head.

    Raises:
        InputError: If they differ.
    """
    classes = dataset.metainfo.get('classes')
    if isinstance(classes, str):
        raise InputError(f"metainfo.classes of {describe(dataset)} must be a tuple: write ('{classes}',)")
    if classes is not None and len(classes) != num_classes:
        raise InputError(
            f'model.bbox_head.num_classes is {num_classes}, but {describe(dataset)} has {len(classes)} classes '
            f'({name_some(list(classes))}): set model.bbox_head.num_classes={len(classes)}, or give '
            'metainfo=dict(classes=...) of every dataloader the classes that you want'
        )
    found = len(getattr(dataset, 'cat_ids', None) or classes or ())
    if classes is not None and found != len(classes):
        raise InputError(
            f'{describe(dataset)} has only {found} of the {len(classes)} classes of metainfo.classes '
            f'({name_some(list(classes))}): write the names as in "categories" of the annotation file'
        )


def check_images(dataset: BaseDataset) -> None:
    """Look for every image of a dataset that lies on local disks.

    Args:
        dataset: With ``img_path`` in its data.

    Raises:
        InputError: If a folder or an image is missing.
    """
    if (getattr(dataset, 'backend_args', None) or {}).get('backend', 'local') != 'local':
        return
    names_by_folder: dict[str, list[str]] = {}
    for i in range(len(dataset)):
        folder, name = os.path.split(dataset.get_data_info(i).get('img_path', ''))
        names_by_folder.setdefault(folder, []).append(name)
    for folder, names in names_by_folder.items():
        if '://' in folder or not any(names):
            continue
        if not os.path.isdir(folder):
            raise InputError(
                f'the image folder {folder} of {describe(dataset)} does not exist (working folder: {os.getcwd()}): '
                'check data_root and data_prefix'
            )
        missing = sorted(set(names) - set(os.listdir(folder)))
        if missing:
            raise InputError(
                f'images of {describe(dataset)} are not in {folder}: {name_some(missing)}; add them, or remove them '
                'from the annotation file'
            )


def check_masks(dataset: BaseDataset) -> None:
    """Look for a mask of every instance that counts.

    Args:
        dataset: With ``instances`` in its data.

    Raises:
        InputError: If there are boxes without masks.
    """
    without = []
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        if any('mask' not in instance and not instance.get('ignore_flag') for instance in info.get('instances', ())):
            without.append(os.path.basename(info['img_path']))
    if without:
        raise InputError(
            f'{describe(dataset)} has instances without "segmentation", in images {name_some(without)}: EmbedMask '
            'learns from masks; add them, or remove these annotations'
        )


def check_metrics(evaluator: Evaluator, dataset: object, name: str) -> None:
    """Compare the annotation files of COCO's metrics with the dataset whose detections they judge.

    Args:
        evaluator: Built.
        dataset: Built, as in a dataloader.
        name: Of the evaluator in the config.

    Raises:
        InputError: If a file has other images than the dataset, or instances without "iscrowd".
    """
    infos = (each.get_data_info(i) for each in innermost_datasets(dataset) for i in range(len(each)))
    judged = {info.get('img_id'): os.path.basename(info.get('img_path', '')) for info in infos}
    # Other datasets than COCO's kind may have neither.
    judged.pop(None, None)
    for metric in evaluator.metrics:
        coco = metric._coco_api if type(metric) is CocoMetric else None
        if coco is None:
            continue
        known = {image_id: os.path.basename(image.get('file_name', '')) for image_id, image in coco.imgs.items()}
        foreign = [image for image_id, image in judged.items() if known.get(image_id) not in (image, '')]
        if foreign:
            raise InputError(
                f'the annotation file of {name} is not the one of its dataset: it has no images {name_some(foreign)} '
                f'with the same ids; set {name}.ann_file to what ann_file of the dataset is, with data_root before it'
            )
        without = [annotation['id'] for annotation in coco.anns.values() if 'iscrowd' not in annotation]
        if without and not metric.format_only:
            raise InputError(
                f'annotations without "iscrowd" in the file of {name}, ids {name_some(without)}: pycocotools needs it '
                'for metrics; add "iscrowd": 0 to each'
            )


def describe(dataset: BaseDataset) -> str:
    """Name a dataset by its annotation file."""
    return f'{type(dataset).__name__} {getattr(dataset, "ann_file", "")}'.rstrip()


def check_dataset(dataset: object, num_classes: int) -> None:
    """Run all checks on a dataset and on those that it wraps.

    Args:
        dataset: Built, as in a dataloader.
        num_classes: Of the box head.

    Raises:
        InputError: If images are missing, classes differ, or instances have no masks.
    """
    for each in innermost_datasets(dataset):
        check_classes(each, num_classes)
        check_images(each)
        check_masks(each)


@HOOKS.register_module()
class EmbedMaskCheckHook(Hook):
    """Checks data before training and testing, and that a checkpoint is one of this model."""

    # Before hooks that copy the weights, such as MMEngine's EMAHook.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check what is trained on, what is validated on, and what it is compared with."""
        num_classes = bare_model(runner).bbox_head.num_classes
        check_dataset(runner.train_dataloader.dataset, num_classes)
        if runner._val_loop is not None:
            check_dataset(runner.val_dataloader.dataset, num_classes)
            check_metrics(runner.val_evaluator, runner.val_dataloader.dataset, 'val_evaluator')

    def before_test(self, runner: Runner) -> None:
        """Check what is tested on."""
        check_dataset(runner.test_dataloader.dataset, bare_model(runner).bbox_head.num_classes)
        check_metrics(runner.test_evaluator, runner.test_dataloader.dataset, 'test_evaluator')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that the checkpoint belongs to the model, and adapt it."""
        prepare_checkpoint(runner, bare_model(runner), checkpoint)


@HOOKS.register_module()
class EmbedMaskPackagesHook(Hook):
    """Names packages that a config's data or metrics need, before an epoch is trained that cannot be evaluated.

    Args:
        packages: Modules by name, and for each what ``pip install`` takes to get one that works.

    Raises:
        InputError: If a module cannot be imported, or uses names that the installed numpy has no more.
    """

    def __init__(self, packages: dict[str, str]) -> None:
        for module, requirement in packages.items():
            package = module.partition('.')[0]
            try:
                source = inspect.getsource(importlib.import_module(module))
            except ImportError as error:
                raise InputError(
                    f'this config needs {package}, which cannot be imported ({error}): pip install {requirement}'
                ) from error
            gone = [name for name in re.findall(r'\bnp\.(\w+)', source) if not hasattr(np, name)]
            if gone:
                raise InputError(
                    f'the installed {package} uses np.{gone[0]}, which numpy {np.__version__} has no more: '
                    f'pip install {requirement}'
                )


def bare_model(runner: Runner) -> EmbedMask:
    """Return the detector inside of wrappers for several processes or test-time augmentation."""
    model: nn.Module = runner.model
    while is_model_wrapper(model) or not isinstance(model, EmbedMask):
        model = model.module
    return model
