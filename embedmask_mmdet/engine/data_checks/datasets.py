"""Check datasets that MMDetection built: classes, images, and whether there is something to learn from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from mmengine.dataset import BaseDataset

from embedmask_mmdet.engine.data_checks.findings import Finding, error, report, warning
from embedmask_mmdet.engine.data_checks.images import (
    ImageEntry,
    describe_loading,
    find_missing_images,
    find_wrong_images,
)
from embedmask_mmdet.engine.data_checks.pipelines import (
    find_loading_without_masks,
    find_pipeline_problems,
    list_transforms,
)
from embedmask_mmdet.errors import name_some

NUM_IMAGES = 200  # looked at before training


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
    return f'{type(dataset).__name__} {find_ann_file(dataset)}'.rstrip()


def find_ann_file(dataset: BaseDataset) -> str:
    """Return the annotation file of a dataset, empty if it has none."""
    return str(getattr(dataset, 'ann_file', '') or '')


class Summary(NamedTuple):
    """What checks need to know of a dataset, collected in one pass.

    Attributes:
        images: Its images with a path.
        without_masks: File names of images that have instances without masks.
        counts: Number of instances to learn by class; None if the data have no instances at all.
    """

    images: list[ImageEntry]
    without_masks: list[str]
    counts: dict[int, int] | None


def summarize(dataset: BaseDataset) -> Summary:
    """Read the entries of a dataset once."""
    images, without_masks, counts = [], [], None
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        path = info.get('img_path') or ''
        if path:
            size = (info['width'], info['height']) if 'width' in info and 'height' in info else None
            images.append(ImageEntry(path, size))
        if 'instances' not in info:
            continue
        counts = {} if counts is None else counts
        if any('mask' not in instance for instance in info['instances']):
            without_masks.append(os.path.basename(path))
        for instance in info['instances']:
            if not instance.get('ignore_flag'):
                label = instance.get('bbox_label', 0)
                counts[label] = counts.get(label, 0) + 1
    return Summary(images, without_masks, counts)


def find_class_problems(dataset: BaseDataset, num_classes: int | None) -> Iterator[Finding]:
    """Compare a dataset's classes with the model's number of classes and with the annotation file's categories.

    Args:
        dataset: A dataset with ``metainfo``. Datasets in COCO format also have ``cat_ids``.
        num_classes: Number of classes of the box head; None if it is not known.
    """
    classes, name, ann_file = dataset.metainfo.get('classes'), describe_dataset(dataset), find_ann_file(dataset)
    if classes is None:
        return
    if isinstance(classes, str):
        yield error(
            f"metainfo.classes of {name} must be a tuple, but is a string. Write ('{classes}',).", ann_file=ann_file
        )
        return
    listed = name_some(list(classes))
    if num_classes is not None and len(classes) != num_classes:
        yield error(
            f'model.bbox_head.num_classes is {num_classes}, but {name} has {len(classes)} classes ({listed}). Set '
            f'model.bbox_head.num_classes={len(classes)}, or set metainfo=dict(classes=...) of every dataset to the '
            'classes that you want.',
            ann_file=ann_file,
        )
        return
    cat_ids = getattr(dataset, 'cat_ids', classes)
    if len(set(classes)) < len(classes):
        yield error(f'metainfo.classes of {name} has a name twice ({listed}). Remove one.', ann_file=ann_file)
    elif len(cat_ids) < len(classes):
        yield error(
            f'{name} has only {len(cat_ids)} of the {len(classes)} classes of metainfo.classes ({listed}). Write the '
            'names as in "categories" of the annotation file.',
            ann_file=ann_file,
        )
    elif len(cat_ids) > len(classes):
        yield error(
            f'{name} has {len(cat_ids)} categories for the {len(classes)} classes of metainfo.classes ({listed}). '
            'Give each entry of "categories" a name of its own.',
            ann_file=ann_file,
        )


def find_palette_problems(dataset: BaseDataset) -> Iterator[Finding]:
    """Find a palette that ends before the classes, at which MMDetection fails when it draws detections."""
    classes, palette = dataset.metainfo.get('classes'), dataset.metainfo.get('palette')
    if isinstance(palette, list) and classes is not None and len(palette) < len(classes):
        yield error(
            f'metainfo.palette of {describe_dataset(dataset)} has {len(palette)} colors for {len(classes)} classes. '
            "Add colors, or write metainfo=dict(classes=..., palette='random').",
            ann_file=find_ann_file(dataset),
        )


def find_mask_gaps(dataset: BaseDataset, summary: Summary) -> Iterator[Finding]:
    """Find instances without masks. Crowd regions need one too, because MMDetection loads it."""
    if summary.without_masks:
        yield error(
            f'{describe_dataset(dataset)} has instances without "segmentation" in the images '
            f'{name_some(summary.without_masks)}. EmbedMask learns from masks: add them, or remove these annotations.',
            summary.without_masks,
            ann_file=find_ann_file(dataset),
        )


def find_nothing_to_learn(dataset: BaseDataset, summary: Summary) -> Iterator[Finding]:
    """Find training datasets, and classes of them, without instances."""
    if dataset.test_mode or summary.counts is None:
        return
    name, ann_file, classes = describe_dataset(dataset), find_ann_file(dataset), dataset.metainfo.get('classes')
    if not summary.counts:
        yield error(
            f'{name} has {len(dataset)} images, but no instance to learn from. All annotations are crowd regions, of '
            'other categories than metainfo.classes, or were left out because of their box or area.',
            ann_file=ann_file,
        )
    elif classes is not None:
        absent = [class_name for label, class_name in enumerate(classes) if label not in summary.counts]
        if absent:
            yield warning(
                f'{name} has no instance of {name_some(absent)} to learn from. Remove the names from classes, or add '
                'images with them.',
                ann_file=ann_file,
            )


def find_image_problems(dataset: BaseDataset, summary: Summary, num_images: int | None) -> list[Finding]:
    """Check the images of a dataset on a local disk."""
    if (getattr(dataset, 'backend_args', None) or {}).get('backend', 'local') != 'local':
        return []
    images = [image for image in summary.images if '://' not in image.path]
    about = describe_dataset(dataset), find_ann_file(dataset)
    missing = list(find_missing_images(images, *about))
    loading = describe_loading(list_transforms(dataset))
    if missing or loading is None:
        return missing
    return list(find_wrong_images(images, *about, loading, num_images))


def find_dataset_problems(
    dataset: object, num_classes: int | None, num_images: int | None = NUM_IMAGES
) -> list[Finding]:
    """Check a dataset and all datasets that it wraps.

    Args:
        dataset: A dataset or a wrapper, as a dataloader holds it.
        num_classes: Number of classes of the box head; None if it is not known.
        num_images: How many image files of each dataset to look at; None for all.
    """
    found = list(find_pipeline_problems(dataset))
    for inner in unwrap_datasets(dataset):
        found += find_loading_without_masks(inner)
        found += [*find_class_problems(inner, num_classes), *find_palette_problems(inner)]
        summary = summarize(inner)
        found += find_image_problems(inner, summary, num_images)
        found += [*find_mask_gaps(inner, summary), *find_nothing_to_learn(inner, summary)]
    return found


def check_dataset(dataset: object, num_classes: int | None) -> None:
    """Check classes, images and masks of a dataset and of all datasets that it wraps.

    Args:
        dataset: A dataset or a wrapper, as a dataloader holds it.
        num_classes: Number of classes of the box head.

    Raises:
        InputError: If something is wrong with the dataset.
    """
    report(find_dataset_problems(dataset, num_classes))
