"""Check that COCO metrics have the annotations of the images that they evaluate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator
from pycocotools.coco import COCO

from embedmask_mmdet.engine.data_checks.datasets import unwrap_datasets
from embedmask_mmdet.engine.data_checks.findings import Finding, error, report, warning
from embedmask_mmdet.engine.data_checks.structure import locate, name_entries
from embedmask_mmdet.errors import name_some


def find_other_images(coco: COCO, images: dict[int, str], name: str) -> Iterator[Finding]:
    """Check that an annotation file has the images that are evaluated.

    Args:
        coco: The annotation file of a metric.
        images: File names by image id, from the dataset.
        name: Key of the evaluator in the config.
    """
    known = {image_id: os.path.basename(image.get('file_name', '')) for image_id, image in coco.imgs.items()}
    foreign = [image for image_id, image in images.items() if known.get(image_id) not in (image, '')]
    if foreign:
        yield error(
            f'The annotation file of {name} does not belong to its dataset: it has no images {name_some(foreign)} with '
            f'the same ids. Set {name}.ann_file to the ann_file of the dataset, including data_root.',
            foreign,
        )


def find_other_categories(metric: CocoMetric, classes: Sequence[str], name: str) -> Iterator[Finding]:
    """Check that an annotation file has the classes that are evaluated, and that their names will be right."""
    cat_ids = metric._coco_api.get_cat_ids(cat_names=classes)
    if len(cat_ids) < len(classes):
        yield error(
            f'The annotation file of {name} has only {len(cat_ids)} of the {len(classes)} classes of its dataset '
            f'({name_some(list(classes))}). Set {name}.ann_file to the ann_file of the dataset, including data_root.'
        )
    elif metric.classwise and cat_ids != sorted(cat_ids):
        yield error(
            f'{name}.classwise would give figures to the wrong classes, as pycocotools sorts them by category id. '
            'Order classes by the ids in "categories", or remove classwise.'
        )


def find_nothing_to_compare(coco: COCO, name: str) -> Iterator[Finding]:
    """Find annotation files without annotations: an error for a validation, as the best checkpoint depends on it."""
    if not coco.dataset.get('annotations'):
        # Testing may write detections in images that nobody labeled.
        make = error if name == 'val_evaluator' else warning
        yield make(
            f'The annotation file of {name} has no annotations, so nothing can be evaluated. Set {name}.ann_file to a '
            'file with annotations, or write only result files with tools/test.py --format-only.'
        )


def find_unmasked(coco: COCO, classes: Sequence[str], name: str) -> Iterator[Finding]:
    """Find annotations without a mask, at which pycocotools fails after the first epoch."""
    cat_ids = set(coco.get_cat_ids(cat_names=classes))
    annotations = coco.dataset.get('annotations', [])
    wrong = [
        index
        for index, annotation in enumerate(annotations)
        if not annotation.get('segmentation')
        and annotation['category_id'] in cat_ids
        and annotation['image_id'] in coco.imgs
    ]
    if wrong:
        yield error(
            f'The annotation file of {name} has annotations without "segmentation": '
            f'{name_entries(annotations, wrong)}. Masks cannot be evaluated there: add them, or remove these '
            'annotations.',
            **locate('annotations', annotations, wrong),
        )


def find_metric_problems(evaluator: Evaluator, dataset: object, name: str) -> list[Finding]:
    """Compare the annotation files of COCO metrics with the dataset whose predictions they evaluate.

    Args:
        evaluator: The evaluator with its metrics.
        dataset: A dataset or a wrapper, as a dataloader holds it.
        name: Key of the evaluator in the config.
    """
    infos = (inner.get_data_info(i) for inner in unwrap_datasets(dataset) for i in range(len(inner)))
    # Datasets that are not in COCO format may have no image ids.
    images = {info['img_id']: os.path.basename(info.get('img_path', '')) for info in infos if 'img_id' in info}
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    found = []
    for metric in evaluator.metrics:
        # A metric without an annotation file makes one of the dataset's data.
        if type(metric) is not CocoMetric or metric._coco_api is None:
            continue
        found += find_other_images(metric._coco_api, images, name)
        if not metric.format_only:
            found += find_nothing_to_compare(metric._coco_api, name)
        if classes is None:
            continue
        found += find_other_categories(metric, classes, name)
        if 'segm' in metric.metrics and not metric.format_only:
            found += find_unmasked(metric._coco_api, classes, name)
    return found


def check_metrics(evaluator: Evaluator, dataset: object, name: str) -> None:
    """Compare the annotation files of COCO metrics with the dataset whose predictions they evaluate.

    Args:
        evaluator: The evaluator with its metrics.
        dataset: A dataset or a wrapper, as a dataloader holds it.
        name: Key of the evaluator in the config.

    Raises:
        InputError: If a file has other images or classes than the dataset, or annotations without masks.
    """
    report(find_metric_problems(evaluator, dataset, name))
