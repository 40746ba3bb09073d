"""Annotations and detections as the report compares them; nothing in a broken file ends the program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as mask_utils

from embedmask_mmdet.errors import InputError

COCO_URL = 'http://images.cocodataset.org/'


@dataclass(frozen=True, eq=False)
class Instance:
    """An annotated instance.

    Attributes:
        id: Number from 1 on, unique even if the ids of the file are not.
        label_id: Its id in the file.
        image_id: Id of its image.
        category_id: Id of its category.
        rle: Its mask as COCO's compressed RLE.
        bbox: Left, top, width and height in pixels, as in the file; around the mask if the file has none.
        area: Pixels, as in the file; those of the mask if the file has no area.
        crowd: Whether it is a crowd region.
    """

    id: int
    label_id: object
    image_id: int
    category_id: int
    rle: dict
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool = False


@dataclass(frozen=True, eq=False)
class Detection:
    """A detected instance, with a number from 1 on; the other attributes are those of :class:`Instance`."""

    id: int
    image_id: int
    category_id: int
    rle: dict
    bbox: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Unreadable:
    """An annotation without a usable mask, image or category."""

    label_id: object
    image_id: object
    reason: str


@dataclass
class Labels:
    """The annotations of a data set.

    Attributes:
        ann_file: The annotation file.
        image_folder: Folder that file names are relative to.
        images: Entries of the images by their ids.
        names: Names of the categories that count, by their ids.
        instances: Instances of these categories.
        unreadable: Annotations of these categories that cannot be used.
    """

    ann_file: str
    image_folder: str
    images: dict[int, dict]
    names: dict[int, str]
    instances: list[Instance] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)

    def image_name(self, image_id: int) -> str:
        """Return the file name of an image."""
        image = self.images.get(image_id, {})
        # LVIS has addresses in place of names.
        url = str(image.get('coco_url', f'image {image_id}')).removeprefix(COCO_URL)
        return str(image.get('file_name', url))

    def by_image(self) -> dict[int, list[Instance]]:
        """Return the instances of each image that has some."""
        return group_by_image(self.instances)


def group_by_image(items: Iterable) -> dict[int, list]:
    """Return instances or detections by the id of their image."""
    groups: dict[int, list] = {}
    for item in items:
        groups.setdefault(item.image_id, []).append(item)
    return groups


def encode_polygons(polygons: list, height: int, width: int) -> dict:
    """Convert polygons ``[[x, y, x, y, ...], ...]`` to one compressed RLE.

    Raises:
        ValueError: If a polygon has too few points or other than finite numbers.
    """
    arrays = [np.asarray(polygon, dtype=float).ravel() for polygon in polygons]
    if not arrays or any(len(array) < 6 or len(array) % 2 for array in arrays):
        raise ValueError('it has a polygon of fewer than 3 points')
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError('it has coordinates that are not finite')
    return mask_utils.merge(mask_utils.frPyObjects([array.tolist() for array in arrays], height, width))


def encode_segmentation(segmentation: object, height: int, width: int) -> dict:
    """Convert polygons or run lengths to one compressed RLE.

    Raises:
        ValueError: If it is neither, or does not fit the image.
    """
    if not segmentation or not isinstance(segmentation, (list, dict)):
        raise ValueError('it has no segmentation')
    if isinstance(segmentation, list):
        return encode_polygons(segmentation, height, width)
    counts, size = segmentation['counts'], list(segmentation['size'])
    if size != [height, width]:
        raise ValueError(f'its mask is {size[0]} high and {size[1]} wide, the image {height} and {width}')
    if not isinstance(counts, list):
        return dict(segmentation)
    if sum(counts) != height * width:
        raise ValueError('its run lengths do not add up to the size of the image')
    return mask_utils.frPyObjects(segmentation, height, width)


def is_box(bbox: object) -> bool:
    """Return whether something is four finite numbers."""
    try:
        return len(bbox) == 4 and bool(np.isfinite(np.asarray(bbox, dtype=float)).all())
    except (TypeError, ValueError):
        return False


def read_instance(
    annotation: object, number: int, images: dict[int, dict], names: dict[int, str]
) -> Instance | Unreadable:
    """Read one annotation; what cannot be used comes back with the reason.

    Args:
        annotation: The entry of the file.
        number: The id that the instance gets.
        images: Entries of the images by id.
        names: Names of all categories by id.
    """
    if not isinstance(annotation, dict):
        return Unreadable(None, None, f'the entry is {annotation!r}')
    label_id, image_id, category_id = (annotation.get(key) for key in ('id', 'image_id', 'category_id'))
    if not is_id(image_id) or image_id not in images:
        return Unreadable(label_id, None, f'the file has no image {image_id!r}')
    if not is_id(category_id) or category_id not in names:
        return Unreadable(label_id, image_id, f'the file has no category {category_id!r}')
    image = images[image_id]
    try:
        height, width = int(image['height']), int(image['width'])
    except (KeyError, TypeError, ValueError):
        return Unreadable(label_id, image_id, 'the entry of its image has no height or width')
    try:
        rle = encode_segmentation(annotation.get('segmentation'), height, width)
        pixels = float(mask_utils.area(rle))
        around = mask_utils.toBbox(rle).tolist()
    except ValueError as error:
        return Unreadable(label_id, image_id, str(error))
    except Exception as error:  # pycocotools raises plain exceptions
        return Unreadable(label_id, image_id, f'its mask cannot be read: {error!r}')
    if pixels == 0:
        return Unreadable(label_id, image_id, 'its mask is empty')
    bbox, area = annotation.get('bbox'), annotation.get('area')
    return Instance(
        id=number,
        label_id=label_id,
        image_id=image_id,
        category_id=category_id,
        rle=rle,
        bbox=tuple(map(float, bbox if is_box(bbox) else around)),
        area=float(area) if isinstance(area, (int, float)) else pixels,
        crowd=bool(annotation.get('iscrowd')),
    )


def read_json(path: str | Path) -> object:
    """Read a JSON file.

    Raises:
        InputError: If it cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}. Check the path in the config.') from error
    except ValueError as error:
        raise InputError(f'{path} is not a JSON file ({error}). Export the annotations again.') from error


def read_labels(ann_file: str, image_folder: str, classes: Iterable[str] | None = None) -> Labels:
    """Read an annotation file in COCO's format.

    Args:
        ann_file: The file.
        image_folder: Folder of the images.
        classes: Names of the categories that count; None for all.

    Raises:
        InputError: If the file cannot be read or has another format.
    """
    content = read_json(ann_file)
    if not isinstance(content, dict) or not isinstance(content.get('images'), list):
        raise InputError(f'{ann_file} has no list "images". The report needs annotations in COCO\'s format.')
    images = {image['id']: image for image in list_entries(content, 'images')}
    names = {entry['id']: str(entry.get('name', entry['id'])) for entry in list_entries(content, 'categories')}
    wanted = set(names.values()) if classes is None else set(classes)
    kept = {category_id: name for category_id, name in names.items() if name in wanted}
    labels = Labels(str(ann_file), str(image_folder), images, kept)
    for number, annotation in enumerate(content.get('annotations') or [], start=1):
        instance = read_instance(annotation, number, images, names)
        if isinstance(instance, Unreadable):
            labels.unreadable.append(instance)
        elif instance.category_id in kept:
            labels.instances.append(instance)
    return labels


def list_entries(content: dict, key: str) -> list[dict]:
    """Return the entries of a list that have an id."""
    return [entry for entry in content.get(key) or [] if isinstance(entry, dict) and is_id(entry.get('id'))]


def is_id(value: object) -> bool:
    """Return whether something can be the id of an image, a category or an annotation."""
    return isinstance(value, (int, str))


def walk_datasets(dataset: dict) -> Iterator[dict]:
    """Yield the configs of the data sets inside wrappers such as ``RepeatDataset``."""
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        yield dataset
    for each in inner:
        yield from walk_datasets(each)


def read_dataloader(cfg: Config, key: str) -> list[Labels]:
    """Read the annotations of a dataloader, one item for each of its data sets.

    Args:
        cfg: A config.
        key: Such as ``train_dataloader``.

    Raises:
        InputError: If the config has no such dataloader, or a file cannot be read.
    """
    if not cfg.get(key):
        raise InputError(f'the config has no {key}. Add it, or give another config.')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    labels = []
    for dataset_cfg in walk_datasets(cfg[key].dataset):
        dataset = DATASETS.build({**dataset_cfg, 'lazy_init': True})
        folder = dataset.data_prefix.get('img', '')
        labels.append(read_labels(dataset.ann_file, folder, dataset.metainfo.get('classes')))
    return labels


def read_detections(results: object, labels: Labels) -> list[Detection]:
    """Read masks in COCO's format for results.

    Args:
        results: The content of the file. Boxes around the masks replace boxes that it lacks.
        labels: The annotations that they belong to; detections of other categories are left out.

    Raises:
        InputError: If the content has another format, or belongs to other images.
    """
    detections = []
    try:
        for number, result in enumerate(results, start=1):
            rle = dict(result['segmentation'])
            bbox = result['bbox'] if is_box(result.get('bbox')) else mask_utils.toBbox(rle).tolist()
            values = number, result['image_id'], result['category_id'], rle, tuple(bbox), float(result['score'])
            detections.append(Detection(*values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the results are not a list of masks in COCO's format ({error!r}). Write them with "
            '`tools/test.py CONFIG CHECKPOINT --out NAME.json` and give NAME.segm.json.'
        ) from error
    others = {detection.image_id for detection in detections} - set(labels.images)
    if others:
        raise InputError(
            f'the results have image {min(others, key=str)}, which {labels.ann_file} does not have. Give results on '
            'the images of test_dataloader.'
        )
    return [detection for detection in detections if detection.category_id in labels.names]
