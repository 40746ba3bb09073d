"""Check datasets and metrics for errors that would otherwise show up hours later, or never."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

from mmdet.evaluation import CocoMetric
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from pycocotools.coco import COCO

from embedmask_mmdet.errors import InputError, name_some


def unwrap_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Yield the datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    if hasattr(dataset, 'datasets'):
        wrapped = dataset.datasets
    elif hasattr(dataset, 'dataset'):
        wrapped = [dataset.dataset]
    else:
        yield dataset
        return
    for inner in wrapped:
        yield from unwrap_datasets(inner)


def describe_dataset(dataset: BaseDataset) -> str:
    """Name a dataset by its type and its annotation file."""
    return f'{type(dataset).__name__} {getattr(dataset, "ann_file", "")}'.rstrip()


def check_dataset(dataset: object, num_classes: int) -> None:
    """Check classes, images and masks of a dataset and of all datasets that it wraps.

    Args:
        dataset: A dataset or a wrapper, as a dataloader holds it.
        num_classes: Number of classes of the box head.

    Raises:
        InputError: If classes differ, images are missing, or instances have no masks.
    """
    for inner in unwrap_datasets(dataset):
        check_classes(inner, num_classes)
        check_images(inner)
        check_masks(inner)


def check_classes(dataset: BaseDataset, num_classes: int) -> None:
    """Compare a dataset's classes with the model's number of classes and with the annotation file's categories.

    Args:
        dataset: A dataset with ``metainfo``. Datasets in COCO format also have ``cat_ids``.
        num_classes: Number of classes of the box head.

    Raises:
        InputError: If they differ.
    """
    classes = dataset.metainfo.get('classes')
    if classes is None:
        return
    if isinstance(classes, str):
        raise InputError(
            f"metainfo.classes of {describe_dataset(dataset)} must be a tuple, but is a string. Write ('{classes}',)."
        )
    if len(classes) != num_classes:
        raise InputError(
            f'model.bbox_head.num_classes is {num_classes}, but {describe_dataset(dataset)} has {len(classes)} classes '
            f'({name_some(list(classes))}). Set model.bbox_head.num_classes={len(classes)}, or set '
            'metainfo=dict(classes=...) of every dataset to the classes that you want.'
        )
    cat_ids = getattr(dataset, 'cat_ids', classes)
    if len(cat_ids) < len(classes):
        raise InputError(
            f'{describe_dataset(dataset)} has only {len(cat_ids)} of the {len(classes)} classes of metainfo.classes '
            f'({name_some(list(classes))}). Write the names as in "categories" of the annotation file.'
        )
    if len(cat_ids) > len(classes):
        raise InputError(
            f'{describe_dataset(dataset)} has {len(cat_ids)} categories for the {len(classes)} classes of '
            f'metainfo.classes ({name_some(list(classes))}). Give each entry of "categories" a name of its own.'
        )


def list_local_images(dataset: BaseDataset) -> dict[str, set[str]]:
    """Collect the file names of a dataset's images by folder, without images in remote storage."""
    images_by_folder: dict[str, set[str]] = defaultdict(set)
    if (getattr(dataset, 'backend_args', None) or {}).get('backend', 'local') != 'local':
        return images_by_folder
    for i in range(len(dataset)):
        folder, name = os.path.split(dataset.get_data_info(i).get('img_path', ''))
        if name and '://' not in folder:
            images_by_folder[folder or os.curdir].add(name)
    return images_by_folder


def check_images(dataset: BaseDataset) -> None:
    """Check that every image of a dataset exists if it is on a local disk.

    Args:
        dataset: A dataset, usually with ``img_path`` in its data.

    Raises:
        InputError: If a folder or an image is missing.
    """
    for folder, names in list_local_images(dataset).items():
        if not os.path.isdir(folder):
            raise InputError(
                f'The image folder {folder} of {describe_dataset(dataset)} does not exist '
                f'(working folder: {os.getcwd()}). Check data_root and data_prefix.'
            )
        missing = sorted(names - set(os.listdir(folder)))
        if missing:
            raise InputError(
                f'Images of {describe_dataset(dataset)} are not in {folder}: {name_some(missing)}. Add them, or '
                'remove them from the annotation file.'
            )


def check_masks(dataset: BaseDataset) -> None:
    """Check that every instance has a mask. Crowd regions need one too, because MMDetection loads it.

    Args:
        dataset: A dataset, usually with ``instances`` in its data.

    Raises:
        InputError: If there are boxes without masks.
    """
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    images = [
        os.path.basename(info.get('img_path', ''))
        for info in infos
        if any('mask' not in instance for instance in info.get('instances', ()))
    ]
    if images:
        raise InputError(
            f'{describe_dataset(dataset)} has instances without "segmentation" in the images {name_some(images)}. '
            'EmbedMask learns from masks: add them, or remove these annotations.'
        )


def check_metrics(evaluator: Evaluator, dataset: object, name: str) -> None:
    """Compare the annotation files of COCO metrics with the dataset whose predictions they evaluate.

    Args:
        evaluator: The evaluator with its metrics.
        dataset: A dataset or a wrapper, as a dataloader holds it.
        name: Key of the evaluator in the config.

    Raises:
        InputError: If a file has other images than the dataset, or annotations without "iscrowd".
    """
    infos = (inner.get_data_info(i) for inner in unwrap_datasets(dataset) for i in range(len(inner)))
    # Datasets that are not in COCO format may have no image ids.
    images = {info['img_id']: os.path.basename(info.get('img_path', '')) for info in infos if 'img_id' in info}
    for metric in evaluator.metrics:
        # A metric without an annotation file makes one of the dataset's data.
        if type(metric) is CocoMetric and metric._coco_api is not None:
            check_metric_images(metric._coco_api, images, name)
            if not metric.format_only:
                check_iscrowd(metric._coco_api, name)


def check_metric_images(coco: COCO, images: dict[int, str], name: str) -> None:
    """Check that an annotation file has the images that are evaluated.

    Args:
        coco: The annotation file of a metric.
        images: File names by image id, from the dataset.
        name: Key of the evaluator in the config.

    Raises:
        InputError: If an id is missing, or belongs to another file name.
    """
    known = {image_id: os.path.basename(image.get('file_name', '')) for image_id, image in coco.imgs.items()}
    foreign = [image for image_id, image in images.items() if known.get(image_id) not in (image, '')]
    if foreign:
        raise InputError(
            f'The annotation file of {name} does not belong to its dataset: it has no images {name_some(foreign)} with '
            f'the same ids. Set {name}.ann_file to the ann_file of the dataset, including data_root.'
        )


def check_iscrowd(coco: COCO, name: str) -> None:
    """Check that each annotation has the key "iscrowd", without which pycocotools fails after the first epoch.

    Args:
        coco: The annotation file of a metric.
        name: Key of the evaluator in the config.

    Raises:
        InputError: If the key is missing.
    """
    ids = [annotation['id'] for annotation in coco.anns.values() if 'iscrowd' not in annotation]
    if ids:
        raise InputError(
            f'The annotation file of {name} has annotations without "iscrowd", ids {name_some(ids)}. pycocotools needs '
            'this key: add "iscrowd": 0 to each of them.'
        )
