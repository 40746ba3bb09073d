"""Measure how long a training pipeline takes for a crowded image, with our masks and with MMDetection's."""

from __future__ import annotations

import json
import pickle
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import cv2
import numpy as np
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from pycocotools import mask as mask_utils

SIZE, NUM_INSTANCES, RADIUS, NUM_CORNERS = 1000, 300, 30, 24
KINDS = ('polygons', 'run lengths')
LOADERS = ('LoadAnnotations', 'EmbedMaskLoadAnnotations')
HEADER = (
    '| training pipeline of | masks | MMDetection | ours | times faster | MMDetection | ours | times smaller |\n'
    '| --- | --- | --- | --- | --- | --- | --- | --- |'
)


class Cost(NamedTuple):
    """Median seconds of CPU time to load an image, and mean bytes of its masks as a worker sends them."""

    seconds: float
    num_bytes: float


def draw_polygons(rng: np.random.Generator) -> Iterator[list[float]]:
    """Draw the outlines of blobs of about 60x60 pixels."""
    angles = np.linspace(0, 2 * np.pi, NUM_CORNERS, endpoint=False)
    for center in rng.uniform(RADIUS, SIZE - RADIUS, (NUM_INSTANCES, 2)):
        radii = RADIUS * rng.uniform(0.8, 1, NUM_CORNERS)
        corners = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        yield corners.round(2).ravel().tolist()


def annotate(polygon: list[float], annotation_id: int, kind: str) -> dict:
    """Make the annotation of an instance; ``kind`` is one of :data:`KINDS`."""
    (rle,) = mask_utils.frPyObjects([polygon], SIZE, SIZE)
    run_lengths = dict(size=rle['size'], counts=rle['counts'].decode())
    return dict(
        id=annotation_id,
        image_id=1,
        category_id=1,
        bbox=mask_utils.toBbox(rle).tolist(),
        area=int(mask_utils.area(rle)),
        iscrowd=0,
        segmentation=[polygon] if kind == 'polygons' else run_lengths,
    )


def write_crowd(folder: Path) -> None:
    """Write ``crowd.jpg`` of 1,000x1,000 pixels and, for each kind of masks, an annotation file of 300 instances."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    cv2.imwrite(str(folder / 'crowd.jpg'), cv2.GaussianBlur(image, (9, 9), 3))
    polygons = list(draw_polygons(rng))
    for kind in KINDS:
        content = dict(
            images=[dict(id=1, file_name='crowd.jpg', height=SIZE, width=SIZE)],
            annotations=[annotate(polygon, i, kind) for i, polygon in enumerate(polygons, start=1)],
            categories=[dict(id=1, name='blob')],
        )
        (folder / f'{kind}.json').write_text(json.dumps(content))


def build_dataset(folder: Path, kind: str, pipeline: Sequence[dict], loader: str) -> BaseDataset:
    """Build the dataset of :func:`write_crowd`.

    Args:
        folder: Of the dataset.
        kind: One of :data:`KINDS`.
        pipeline: Configs of transforms.
        loader: Transform that takes the place of those in :data:`LOADERS`.
    """
    steps = [dict(step, type=loader) if step['type'] in LOADERS else step for step in pipeline]
    return DATASETS.build(
        dict(
            type='CocoDataset',
            data_root=str(folder),
            ann_file=f'{kind}.json',
            data_prefix=dict(img=''),
            metainfo=dict(classes=('blob',)),
            pipeline=steps,
        )
    )


def measure_loading(datasets: Sequence[BaseDataset], rounds: int) -> list[Cost]:
    """Load the image in turns, each turn with the same random augmentation of all datasets.

    Args:
        datasets: Of :func:`build_dataset`.
        rounds: Turns.
    """
    seconds, num_bytes = np.zeros((2, rounds, len(datasets)))
    for turn in range(rounds):
        for index, dataset in enumerate(datasets):
            random.seed(turn)
            np.random.seed(turn)
            start = time.process_time()
            sample = dataset[0]
            seconds[turn, index] = time.process_time() - start
            num_bytes[turn, index] = len(pickle.dumps(sample['data_samples'].gt_instances.masks))
    return [Cost(median(times), sizes.mean()) for times, sizes in zip(seconds.T, num_bytes.T)]


def format_row(name: str, kind: str, theirs: Cost, ours: Cost) -> str:
    """Format a row of the table."""
    cells = [name, kind]
    for unit, per_unit, before, after in (
        ('ms', 1e-3, theirs.seconds, ours.seconds),
        ('MB', 1e6, theirs.num_bytes, ours.num_bytes),
    ):
        cells += [f'{before / per_unit:,.1f} {unit}', f'{after / per_unit:,.1f} {unit}', f'{before / after:,.0f}']
    return f'| {" | ".join(cells)} |'


def format_table(folder: Path, pipelines: dict[str, Sequence[dict]], rounds: int) -> Iterator[str]:
    """Measure all pipelines and yield the lines of a Markdown table.

    Args:
        folder: Where :func:`write_crowd` has written.
        pipelines: Configs of transforms, by the name of the table's row.
        rounds: Turns, of which the median counts.
    """
    yield HEADER
    for name, pipeline in pipelines.items():
        for kind in KINDS:
            theirs, ours = (build_dataset(folder, kind, pipeline, loader) for loader in LOADERS)
            yield format_row(name, kind, *measure_loading([theirs, ours], rounds))
